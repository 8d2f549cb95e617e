"""Filters for inference, each against Hugging Face's of the same meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from raycap.decoding.filters import Filters
from raycap.errors import Refused

EOS, WORDS = 1, 12


def logits(rows: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed)) * 2


def said(rows: int, width: int, seed: int = 1) -> Tensor:
    """Of few words, so that phrases come again."""
    return torch.randint(2, 5, (rows, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 3, WORDS, 40])
def test_top_k(top_k: int) -> None:
    theirs = TopKLogitsWarper(top_k)(said(40, 3), logits())
    assert torch.equal(Filters(top_k=top_k).keep_likely(logits()), theirs)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p(top_p: float) -> None:
    theirs = TopPLogitsWarper(top_p)(said(40, 3), logits())
    kept = Filters(top_p=top_p).keep_likely(logits())
    assert torch.equal(kept, theirs)
    assert bool((kept > -torch.inf).any(dim=1).all())


def test_top_k_comes_before_top_p() -> None:
    theirs = TopPLogitsWarper(0.7)(said(40, 3), TopKLogitsWarper(4)(said(40, 3), logits()))
    assert torch.equal(Filters(top_k=4, top_p=0.7).keep_likely(logits()), theirs)


@pytest.mark.parametrize("width", [0, 2, 5, 9])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_phrase_twice(size: int, width: int) -> None:
    before = said(40, width)
    theirs = NoRepeatNGramLogitsProcessor(size)(before, logits())
    filters = Filters(no_repeat_ngram=size)
    assert torch.equal(filters.forbid(logits(), before, torch.full((40,), width), EOS), theirs)
    padded = torch.nn.functional.pad(before, (0, 6), value=3)  # what stands behind a row's length is not looked at
    assert torch.equal(filters.forbid(logits(), padded, torch.full((40,), width), EOS), theirs)


def test_no_phrase_twice_in_rows_of_many_lengths() -> None:
    words, lengths = said(40, 9), torch.arange(40) % 10
    kept = Filters(no_repeat_ngram=2).forbid(logits(), words, lengths, EOS)
    for row in range(40):
        alone = NoRepeatNGramLogitsProcessor(2)(words[row : row + 1, : lengths[row]], logits()[row : row + 1])
        assert torch.equal(kept[row : row + 1], alone)


@pytest.mark.parametrize("length", [0, 2, 3, 7])
def test_no_end_before_its_time(length: int) -> None:
    theirs = MinNewTokensLengthLogitsProcessor(0, 3, EOS, device="cpu")(said(40, length), logits())
    assert torch.equal(Filters(min_length=3).forbid(logits(), said(40, length), torch.full((40,), length), EOS), theirs)


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_length": -2}, {"no_repeat_ngram": -1}):
        with pytest.raises(Refused, match=next(iter(wrong))):
            Filters(**wrong)  # type: ignore[arg-type]
