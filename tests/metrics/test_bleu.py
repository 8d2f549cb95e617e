"""BLEU against pycocoevalcap, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.errors import Refused
from raycap.metrics.bleu import bleu, bleu_counts
from raycap.metrics.reference_index import index_references

pycoco = pytest.importorskip("pycocoevalcap.bleu.bleu")

WORDS = st.sampled_from(
    ["a", "man", "dog", "é", "日本", "1\u00a01/2", "n't", "runs", "😀", "\u00a0a.com", "a.com\u2003", "a.com"]
)
CAPTION = st.lists(WORDS, max_size=9)
CORPUS = st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CORPUS)
def test_equals_pycocoevalcap(corpus: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [one for one, _ in corpus], [several for _, several in corpus]
    gts = {i: [" ".join(tokens) for tokens in several] for i, several in enumerate(references)}
    res = {i: [" ".join(one)] for i, one in enumerate(candidates)}
    theirs, each = pycoco.Bleu().compute_score(gts, res, verbose=0)
    ours, per_image = bleu(candidates, references)
    assert ours == pytest.approx(theirs, abs=1e-9)
    np.testing.assert_allclose(per_image, np.array(each).T, atol=1e-9, rtol=0)


def test_published_vector() -> None:
    candidates = [["a", "man", "is", "speaking"], ["rain", "falls"]]
    references = [
        ["a man speaks", "someone speaks", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    corpus, _ = bleu(candidates, [[one.split() for one in several] for several in references])
    assert corpus[0] == pytest.approx(0.4278476, abs=1e-7)


def test_by_hand() -> None:
    """4 words, 3 of them matched, 1 of 3 bigrams; the closest reference has 5 words: penalty e^(1 − 5/4)."""
    candidate, references = ["a", "dog", "runs", "home"], [["a", "dog", "was", "home", "again"]]
    corpus, per_image = bleu([candidate], [references])
    penalty = np.exp(1 - 5 / 4)
    assert corpus[:2] == pytest.approx([0.75 * penalty, np.sqrt(0.75 / 3) * penalty], abs=1e-6)
    assert per_image[0] == pytest.approx(corpus)


@pytest.mark.parametrize(("lengths", "closest"), [([3, 5], 3), ([5, 3], 3), ([1, 6], 6), ([4], 4)])
def test_closest_reference_length_and_the_shorter_of_two(lengths: list[int], closest: int) -> None:
    index, _ = index_references({"x": [["w"] * length for length in lengths]})
    assert (
        bleu_counts([["v"] * 4 if lengths != [1, 6] else ["v"] * 5], np.array([0]), index).reference_length == closest
    )


def test_clips_at_the_most_frequent_reference() -> None:
    index, _ = index_references({"x": [["the", "cat"], ["the", "the", "dog"]], "y": [["the"]]})
    counts = bleu_counts([["the"] * 7, ["the"] * 3], np.array([0, 1]), index)
    assert counts.matches[:, 0].tolist() == [2, 1]
    assert counts.guesses[:, 0].tolist() == [7, 3]


def test_refuses_an_image_without_references() -> None:
    with pytest.raises(Refused, match="no reference"):
        bleu([["a"]], [[]])
