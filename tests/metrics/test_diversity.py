"""Diversity at its two ends, by hand, and against slow versions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.errors import Refused
from raycap.metrics.bleu import bleu
from raycap.metrics.cider import DocumentFrequency
from raycap.metrics.diversity import distinct_n, mbleu, novel_share, self_cider, vocabulary_size

TRAINING = {"x": [["a", "man", "runs"]], "y": [["a", "dog", "sits", "here"]], "z": [["the", "cat", "in", "a", "hat"]]}


def test_distinct_by_hand() -> None:
    samples = [["a", "dog", "runs"], ["a", "dog"], []]
    assert distinct_n(samples, 1) == 3 / 5
    assert distinct_n(samples, 2) == 2 / 5
    assert distinct_n([[]], 1) == 0.0


def test_mbleu_is_one_for_equal_samples_and_nothing_for_disjoint_ones() -> None:
    alike = [["a", "dog", "runs", "fast"]] * 3
    apart = [["a", "dog", "runs", "fast"], ["one", "cat", "sits", "there"], ["two", "men", "walk", "by"]]
    assert mbleu([alike]) == pytest.approx([1.0] * 4, abs=1e-8)
    assert mbleu([apart]) == pytest.approx([0.0] * 4, abs=1e-3)


def test_mbleu_is_the_mean_over_places() -> None:
    samples = [[["a", "dog"], ["a", "cat"]], [["the", "man", "runs"], ["a", "man", "runs"]]]
    forth = bleu([samples[0][0], samples[1][0]], [[samples[0][1]], [samples[1][1]]])[0]
    back = bleu([samples[0][1], samples[1][1]], [[samples[0][0]], [samples[1][0]]])[0]
    assert mbleu(samples) == pytest.approx((forth + back) / 2)


@pytest.mark.parametrize("samples", [[], [[["a"]]], [[["a"], ["b"]], [["a"], ["b"], ["c"]]]])
def test_mbleu_refuses_unequal_or_single_samples(samples: list) -> None:
    with pytest.raises(Refused, match="K ≥ 2"):
        mbleu(samples)


def test_self_cider_at_both_ends() -> None:
    frequency = DocumentFrequency.from_references(TRAINING)
    samples = {
        "same": [["a", "dog", "sits", "here"]] * 4,
        "apart": [["man", "runs", "very", "fast"], ["dog", "sits", "there", "now"], ["hat", "in", "the", "rain"]],
        "half": [["a", "dog", "sits", "here"]] * 2 + [["man", "runs", "very", "fast"]] * 2,
        "single": [["a", "dog"]],
        "nothing": [[], []],
    }
    diversity = self_cider(samples, frequency)
    assert diversity["same"] == pytest.approx(0.0, abs=1e-6)
    assert diversity["apart"] == pytest.approx(1.0, abs=1e-6)
    # two blocks of two: λ = 2, 2, so r = ½ and −log₄ ½ = ½
    assert diversity["half"] == pytest.approx(0.5, abs=1e-6)
    assert diversity["single"] == diversity["nothing"] == 0.0


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "man", "dog", "new", "sits"]), max_size=6), min_size=2, max_size=5))
def test_self_cider_equals_a_slow_version(samples: list[list[str]]) -> None:
    frequency = DocumentFrequency.from_references(TRAINING)

    def vector(tokens: list[str], n: int) -> dict[tuple[str, ...], float]:
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        return {g: tf * (math.log(3) - math.log(max(1, frequency[g]))) for g, tf in counts.items()}

    def cosine(one: dict, other: dict) -> float:
        norms = math.hypot(*one.values()) * math.hypot(*other.values())
        return sum(one[g] * other.get(g, 0) for g in one) / norms if norms else 0.0

    kernel = np.mean(
        [[[cosine(vector(a, n), vector(b, n)) for b in samples] for a in samples] for n in range(1, 5)], axis=0
    )
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    expected = -math.log(roots.max() / roots.sum(), len(samples)) if roots.sum() else 0.0
    assert self_cider({"i": samples}, frequency)["i"] == pytest.approx(expected, abs=1e-6)


def test_vocabulary_and_novelty() -> None:
    captions = [["a", "dog"], ["a", "cat"], ["a", "dog"], []]
    assert vocabulary_size(captions) == 3
    assert novel_share(captions, [["a", "dog"], ["a", "man"]]) == 0.5
    assert novel_share([], []) == 0.0
