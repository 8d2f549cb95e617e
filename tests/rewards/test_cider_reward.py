"""CIDEr-D as a reward: the metric's numbers, frequencies of the labelled captions alone, EOS where a caption ended."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycap.errors import RecipeError
from raycap.metrics.cider import EOS, cider_d, prepare_training
from raycap.metrics.ptb import tokenize
from raycap.rewards.cider import CiderReward, write_document_frequency
from raycap.rewards.context import Context
from raycap.rewards.contract import build_component, checked_scores
from raycap.types import CaptionBatch

MakeContext = Callable[..., Context]
ASKED = CaptionBatch(
    ("a", "a", "a", "b", "c", "c"),
    ("a red dog runs on the grass", "a red dog runs on the", "", "Two cats , on a sofa !", "a man rides", "zebra"),
    (True, False, True, True, True, False),
)


@pytest.mark.parametrize("eos", [True, False])
def test_rewards_are_the_metric_s_numbers(make_context: MakeContext, eos: bool) -> None:
    context = make_context(eos=eos)
    references = {i: [tokenize(text) for text in texts] for i, texts in context.labelled_references().items()}
    _, prepared = prepare_training(references, EOS if eos else None)
    expected = cider_d([tokenize(c) for c in ASKED.captions], ASKED.image_ids, prepared, ASKED.finished)
    got = build_component("cider", context, {"eos": eos}).score(ASKED)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert max(expected) > 1
    assert all(isinstance(value, float) for value in got)


def test_the_end_counts_for_captions_that_ended_by_themselves_only(make_context: MakeContext) -> None:
    with_end, without = (CiderReward(make_context(eos=eos), eos=eos) for eos in (True, False))

    def reward(component: CiderReward, caption: str, finished: bool) -> float:
        (value,) = component.score(CaptionBatch(("b",), (caption,), (finished,)))
        assert value is not None
        return value

    whole, middle = "two cats sleep on a sofa", "two cats sleep on a"
    assert reward(with_end, whole, True) > reward(with_end, whole, False)
    # to stop in the middle and say so gains nothing over being cut there
    assert reward(with_end, middle, True) < reward(with_end, whole, True)
    assert reward(without, whole, True) == reward(without, whole, False)
    lost = reward(with_end, whole, True) - reward(with_end, middle, True)
    assert lost > reward(without, whole, True) - reward(without, middle, True)


def test_an_unlabelled_image_has_no_reward(make_context: MakeContext) -> None:
    batch = CaptionBatch(("d", "a", "nowhere"), ("a dog and a cat", "a red dog", "a dog"), (True, True, True))
    got = CiderReward(make_context()).score(batch)
    assert [value is None for value in got] == [True, False, True]
    assert np.isnan(checked_scores("cider", CiderReward(make_context()), batch)).tolist() == [True, False, True]


def test_captions_of_unlabelled_images_reach_neither_frequencies_nor_references(make_context: MakeContext) -> None:
    few = make_context()
    assert few.references("d") == ()
    assert list(few.labelled_references()) == ["a", "b", "c"]
    before = CiderReward(few).score(ASKED)
    more = CiderReward(make_context(labelled=frozenset("abcd"))).score(ASKED)
    assert before != more, "the fourth image's captions should change the frequencies once it is labelled"


def test_a_reward_does_not_depend_on_what_it_is_asked_with_or_before(make_context: MakeContext) -> None:
    component = CiderReward(make_context())
    whole = component.score(ASKED)
    for n in reversed(range(len(ASKED))):
        part = slice(n, n + 1)
        alone = component.score(CaptionBatch(ASKED.image_ids[part], ASKED.captions[part], ASKED.finished[part]))
        assert alone == whole[part]
    assert component.score(CaptionBatch((), (), ())) == []


def test_frequencies_counted_with_the_other_setting_are_refused(make_context: MakeContext) -> None:
    for eos in (True, False):
        with pytest.raises(RecipeError, match="the other setting") as refused:
            CiderReward(make_context(eos=eos), eos=not eos)
        assert (refused.value.key, refused.value.value) == ("rewards.cider.options.eos", not eos)
        for part in ("named `cider`", "without `source`", "the same `eos`"):
            assert part in str(refused.value.remedy)
        assert "rerun" not in str(refused.value), "counting again gives the same frequencies"


def test_the_signature_says_whether_the_end_counts(make_context: MakeContext) -> None:
    assert CiderReward(make_context()).signature == "STANDARD_wInit+Cider-D[n4,s6.0]"
    assert CiderReward(make_context(eos=False), eos=False).signature == "NO<EOS>_w/oInit+Cider-D[n4,s6.0]"


def test_frequencies_are_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.npz", "two.npz")]
    for file in files:
        write_document_frequency({"a": ["a dog"], "b": ["a cat"]}, file, eos=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_context_s_spec_travels(make_context: MakeContext) -> None:
    context = make_context()
    again = pickle.loads(pickle.dumps(context.spec)).open()
    assert CiderReward(again).score(ASKED) == CiderReward(context).score(ASKED)


def test_what_the_recipe_does_not_have_is_refused_by_name(make_context: MakeContext) -> None:
    context = make_context()
    with pytest.raises(RecipeError, match=r"clip.reward: is not set"):
        context.image_embedding("a")
    with pytest.raises(RecipeError, match=r"clip.reward: is not set"):
        _ = context.reward_clip
