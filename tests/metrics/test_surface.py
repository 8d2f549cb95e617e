"""Length, endings, repetition and unsupported gender words."""

from __future__ import annotations

import pytest

from raycap.metrics.ptb import tokenize
from raycap.metrics.surface import (
    bad_ending_rate,
    has_bad_ending,
    mean_length,
    mean_repetition,
    repetition,
    unsupported_gender,
    unsupported_gender_rate,
)


@pytest.mark.parametrize(
    "caption", ["a man riding a", "a dog in the", "a man and", "two dogs on", "A cat next to a.", "a child with his"]
)
def test_cut_off_captions_have_a_bad_ending(caption: str) -> None:
    assert has_bad_ending(tokenize(caption))


@pytest.mark.parametrize(
    "caption", ["a man riding a horse", "a dog jumping up", "people look at her", "a car drives by", "", "wait for it"]
)
def test_whole_captions_have_none(caption: str) -> None:
    assert not has_bad_ending(tokenize(caption))


def test_rates_and_lengths() -> None:
    captions = [["a", "dog"], ["in", "a"], [], ["the"]]
    assert bad_ending_rate(captions) == 0.5
    assert mean_length(captions) == 5 / 4
    assert bad_ending_rate([]) == mean_length([]) == 0.0


def test_repetition_by_hand() -> None:
    """a man a man a man: bigrams (a man)×3, (man a)×2: 2 distinct of 5."""
    assert repetition(["a", "man"] * 3) == pytest.approx(3 / 5)
    assert repetition(["a", "man"] * 3, 1) == pytest.approx(4 / 6)
    assert repetition(["a"], 2) == 0.0
    assert mean_repetition([["a", "a", "a"], ["b"]]) == pytest.approx(0.25)


def test_gender_words_need_a_reference_of_their_gender() -> None:
    references = [["a", "boy", "on", "his", "board"], ["a", "kid"]]
    assert unsupported_gender(["a", "man", "and", "a", "woman"], references) == ["woman"]
    assert unsupported_gender(["a", "person"], references) == []
    assert unsupported_gender(["a", "man"], [["a", "person"]]) == ["man"]
    rate = unsupported_gender_rate([["a", "man"], ["a", "woman"]], [references, references])
    assert rate == 0.5
