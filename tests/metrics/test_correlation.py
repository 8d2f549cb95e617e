"""Kendall against scipy, against counting all pairs, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.errors import Refused
from raycap.metrics.correlation import count_pairs, kendall_tau_b, kendall_tau_c

SERIES = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0, -2.5, 1e9, 1e9 + 1])), min_size=2, max_size=25
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(SERIES)
def test_pairs_equal_counting_them_all(series: list[tuple[int, float]]) -> None:
    x, y = zip(*series, strict=True)
    counts = count_pairs(x, y)
    signs = [
        (np.sign(x[j] - x[i]), np.sign(y[j] - y[i])) for i in range(len(series)) for j in range(i + 1, len(series))
    ]
    assert counts.pairs == len(signs)
    assert counts.concordant_minus_discordant == sum(a * b for a, b in signs)
    assert counts.tied_x == sum(a == 0 for a, _ in signs)
    assert counts.tied_y == sum(b == 0 for _, b in signs)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(SERIES)
def test_equals_scipy(series: list[tuple[int, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = zip(*series, strict=True)
    for ours, variant in ((kendall_tau_b, "b"), (kendall_tau_c, "c")):
        theirs = stats.kendalltau(x, y, variant=variant).statistic
        if math.isnan(theirs):
            assert math.isnan(ours(x, y))
        else:
            assert ours(x, y) == pytest.approx(theirs, abs=1e-12)


def test_by_hand() -> None:
    """x = 1 2 2 3, y = 1 1 2 3: four concordant pairs, none discordant, one tie in each."""
    x, y = [1, 2, 2, 3], [1, 1, 2, 3]
    assert kendall_tau_b(x, y) == pytest.approx(4 / 5)
    assert kendall_tau_c(x, y) == pytest.approx(2 * 4 * 3 / (16 * 2))


def test_large_and_tied() -> None:
    """As many rows as CrowdFlower has; exact, so a shuffle of the rows changes nothing at all."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, 47_830) / 3
    y = np.round(x + rng.normal(size=len(x)), 3)
    tau = kendall_tau_b(x, y)
    order = rng.permutation(len(x))
    assert kendall_tau_b(x[order], y[order]) == tau
    assert kendall_tau_b(x, -y) == -tau


def test_constant_series_have_no_correlation() -> None:
    for measure in (kendall_tau_b, kendall_tau_c):
        assert math.isnan(measure([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([1], [1]), ([1, math.nan], [1, 2])])
def test_refuses_what_cannot_be_ranked(x: list[float], y: list[float]) -> None:
    with pytest.raises(Refused):
        kendall_tau_b(x, y)
