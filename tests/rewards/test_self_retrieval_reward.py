"""Self-retrieval: against its formula, its sign, its independence of duplicates; and the critic's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from raycap.errors import RecipeError, RewardError
from raycap.models.clip import load_trained_clip
from raycap.rewards.context import Context
from raycap.rewards.contract import build_component, checked_scores
from raycap.types import CaptionBatch

MakeContext = Callable[..., Context]
CAPTIONS = ("a red dog", "two cats on a sofa", "a rider on a horse at the beach")


@pytest.fixture
def context(seeing_context: Callable[[np.ndarray], Context], clip_folder: Path) -> Context:
    """Each image has the embedding of the caption of its number."""
    return seeing_context(load_trained_clip(clip_folder).embed_texts(CAPTIONS))


def test_it_is_log_p_over_chance(context: Context, clip_folder: Path) -> None:
    ids, said = ("a", "b", "c", "a"), (*CAPTIONS, CAPTIONS[1])
    got = checked_scores(
        "self_retrieval", build_component("self_retrieval", context, {"temperature": 0.1}),
        CaptionBatch(ids, said, (True,) * 4),
    )  # fmt: skip
    clip = load_trained_clip(clip_folder)
    texts, images = clip.embed_texts(said).astype(np.float64), clip.embed_texts(CAPTIONS).astype(np.float64)
    p = np.exp(texts @ images.T / 0.1)
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, np.log(3 * p[[0, 1, 2, 3], [0, 1, 2, 0]]), atol=1e-4)
    assert all(value > 0 for value in got[:3])
    assert got[3] < got[0]


def test_more_captions_of_an_image_are_no_more_rivals(context: Context) -> None:
    reward = build_component("self_retrieval", context, {})
    few = reward.score(CaptionBatch(("a", "b"), CAPTIONS[:2], (True,) * 2))
    many = reward.score(CaptionBatch(("a", "b", "b", "b"), (*CAPTIONS[:2], CAPTIONS[0], "x"), (True,) * 4))
    assert few == pytest.approx(many[:2], abs=1e-5)


def test_one_image_alone_has_nothing_to_stand_out_from(context: Context) -> None:
    reward = build_component("self_retrieval", context, {})
    assert reward.score(CaptionBatch(("a", "a"), CAPTIONS[:2], (True, True))) == [None, None]


def test_it_needs_clip_reward_and_a_temperature(make_context: MakeContext, context: Context) -> None:
    with pytest.raises(RecipeError, match=r"clip.reward: is not set"):
        build_component("self_retrieval", make_context(), {})
    with pytest.raises(RecipeError, match=r"options.temperature = 0"):
        build_component("self_retrieval", context, {"temperature": 0})


class Shortness:
    """A critic whose raters like short captions."""

    def __init__(self, context: Context, folder: Path) -> None:
        self.scale = float((folder / "scale").read_text())

    def values(self, image_ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        return np.float32([self.scale / (1 + len(caption)) if caption else np.nan for caption in captions])


def test_a_critic_s_values_are_the_reward(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "scale").write_text("2")
    options = {"model": f"{__name__}:Shortness", "checkpoint": str(tmp_path)}
    critic = build_component("critic", make_context(), options)
    assert critic.score(CaptionBatch(("a", "a"), ("dog", "a dog"), (True, True))) == pytest.approx([2 / 4, 2 / 6])
    with pytest.raises(RewardError, match=r"rewards.critic"):
        checked_scores("critic", critic, CaptionBatch(("a",), ("",), (True,)))


@pytest.mark.parametrize(
    ("options", "key"),
    [({}, "model"), ({"model": "m:C"}, "checkpoint"), ({"model": "m:C", "checkpoint": "/nowhere"}, "checkpoint"),
     ({"model": "nomodule:C", "checkpoint": "."}, "model"), ({"model": "nocolon", "checkpoint": "."}, "model")],
)  # fmt: skip
def test_a_critic_that_is_not_there_is_refused(make_context: MakeContext, options: dict[str, str], key: str) -> None:
    with pytest.raises(RecipeError, match=rf"rewards\.critic\.options\.{key} = "):
        build_component("critic", make_context(), options)
