"""CLIPScore as a reward, on image embeddings computed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycap.errors import DataError, RecipeError
from raycap.metrics.clipscore import clip_scores
from raycap.models.clip import Clip, load_trained_clip
from raycap.rewards.clip import ClipReward
from raycap.rewards.context import Context
from raycap.rewards.contract import build_component, checked_scores
from raycap.types import CaptionBatch

MakeContext = Callable[..., Context]
CAPTIONS = ("a red dog", "two cats on a sofa", "a rider on a horse at the beach")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return load_trained_clip(clip_folder)


@pytest.fixture
def context(seeing_context: Callable[[np.ndarray], Context], clip: Clip) -> Context:
    """Image "a" has the embedding of the first caption itself, "b" its opposite, "c" one across."""
    first, second, third = clip.embed_texts(CAPTIONS)
    across = third - (third @ first) * first
    return seeing_context(np.stack([first, -second, across / np.linalg.norm(across)]).astype(np.float32))


def test_two_and_a_half_times_the_cosine_and_never_below_zero(context: Context, clip: Clip) -> None:
    ids = ("a", "a", "b", "b", "c", "c")
    captions = (CAPTIONS[0], CAPTIONS[1], CAPTIONS[1], CAPTIONS[0], CAPTIONS[0], CAPTIONS[2])
    got = build_component("clip", context, {}).score(CaptionBatch(ids, captions, (True,) * 6))
    images = np.stack([context.image_embedding(image_id) for image_id in ids])
    np.testing.assert_allclose(got, clip_scores(images, clip.embed_texts(captions)), atol=1e-6)
    assert got[0] == pytest.approx(2.5, abs=1e-5)
    assert got[2] == 0.0
    assert got[4] == pytest.approx(0, abs=1e-5)
    assert got[5] is not None
    assert got[5] > 1e-3
    assert all(type(value) is float for value in got)


def test_it_needs_no_references_and_does_not_look_at_the_end(context: Context) -> None:
    reward = ClipReward(context, batch_size=2)
    batch = CaptionBatch(("a", "b", "a"), CAPTIONS, (True, True, True))
    cut = CaptionBatch(batch.image_ids, batch.captions, (False, False, False))
    np.testing.assert_array_equal(checked_scores("clip", reward, batch), checked_scores("clip", reward, cut))
    assert reward.signature == "CLIPScore[raycap-scenes-reward/nothing]"


def test_an_image_without_an_embedding_stops_the_job_by_name(context: Context) -> None:
    with pytest.raises(DataError, match=r"image_id = 'd'"):
        checked_scores("clip", ClipReward(context), CaptionBatch(("d",), ("a dog",), (True,)))


def test_it_needs_clip_reward(make_context: MakeContext) -> None:
    with pytest.raises(RecipeError, match=r"clip.reward: is not set"):
        build_component("clip", make_context(), {})
