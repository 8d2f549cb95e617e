"""BLEU and ROUGE-L as rewards: the metrics' numbers a caption, the end of the caption, None without references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from raycap.errors import RecipeError
from raycap.metrics.cider import EOS
from raycap.metrics.ptb import tokenize
from raycap.rewards.context import Context
from raycap.rewards.contract import build_component, checked_scores
from raycap.types import CaptionBatch

MakeContext = Callable[..., Context]
ASKED = CaptionBatch(
    ("a", "a", "a", "b", "c"),
    ("a red dog runs on the grass", "a red dog runs on the", "a dog", "Two cats , on a sofa !", "a man rides"),
    (True, False, True, True, True),
)


def peer(context: Context, scorer: Any, eos: bool) -> list[Any]:
    """pycocoevalcap's numbers of each caption by itself, the end of the caption as a word of its own."""
    references = context.labelled_references()
    end = f" {EOS}" if eos else ""
    got = []
    for image_id, caption, finished in zip(ASKED.image_ids, ASKED.captions, ASKED.finished, strict=True):
        gts = {"0": [" ".join(tokenize(text)) + end for text in references[image_id]]}
        res = {"0": [" ".join(tokenize(caption)) + (end if finished else "")]}
        got.append(scorer.compute_score(gts, res)[0])
    return got


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("order", [1, 4])
def test_bleu_is_the_peer_s_caption_by_caption(make_context: MakeContext, eos: bool, order: int) -> None:
    context = make_context()
    expected = [scores[order - 1] for scores in peer(context, Bleu(4), eos)]
    got = checked_scores("bleu", build_component("bleu", context, {"order": order, "eos": eos}), ASKED)
    np.testing.assert_allclose(got, np.float32(expected), rtol=1e-5, atol=1e-9)
    assert max(expected) > 0.2


@pytest.mark.parametrize("eos", [True, False])
def test_rouge_is_the_peer_s_caption_by_caption(make_context: MakeContext, eos: bool) -> None:
    context = make_context()
    got = checked_scores("rouge", build_component("rouge", context, {"eos": eos}), ASKED)
    np.testing.assert_allclose(got, np.float32(peer(context, Rouge(), eos)), rtol=1e-6)


@pytest.mark.parametrize("name", ["bleu", "rouge"])
def test_a_caption_that_was_cut_lacks_the_end_where_the_end_counts(make_context: MakeContext, name: str) -> None:
    batch = CaptionBatch(("a", "a"), ("a red dog runs on the grass",) * 2, (True, False))
    ended, cut = build_component(name, make_context(), {}).score(batch)
    assert ended is not None
    assert cut is not None
    assert ended > cut
    ended, cut = build_component(name, make_context(), {"eos": False}).score(batch)
    assert ended == cut


def test_to_stop_in_the_middle_costs_bleu_more_where_the_end_counts(make_context: MakeContext) -> None:
    """ROUGE-L has no such memory of what stands before the end: to it, an end anywhere is one more word in common."""
    context = make_context()
    batch = CaptionBatch(("a", "a"), ("a red dog runs on the grass", "a red dog runs on the"), (True, True))
    lost = {}
    for eos in (True, False):
        whole, middle = build_component("bleu", context, {"eos": eos}).score(batch)
        assert whole is not None
        assert middle is not None
        lost[eos] = whole - middle
    assert lost[True] > lost[False]


@pytest.mark.parametrize("name", ["bleu", "rouge"])
def test_images_without_references_have_no_reward(make_context: MakeContext, name: str) -> None:
    batch = CaptionBatch(("d", "a", "nowhere"), ("a dog", "a red dog", "a dog"), (True, True, True))
    got = build_component(name, make_context(), {}).score(batch)
    assert [value is None for value in got] == [True, False, True]
    assert build_component(name, make_context(), {}).score(CaptionBatch((), (), ())) == []


def test_an_order_that_bleu_has_not_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(RecipeError, match=r"rewards.bleu.options.order = 5"):
        build_component("bleu", make_context(), {"order": 5})
