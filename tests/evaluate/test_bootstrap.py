from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from raycap.errors import DataError
from raycap.evaluate.bootstrap import paired_bootstrap


def test_two_images_by_hand() -> None:
    """Differences 1 and 3 of two images: the four draws have means 1, 2, 2, 3, each as likely."""
    got = paired_bootstrap([1.0, 1.0], [2.0, 4.0], resamples=20_000, confidence=0.9)
    assert (got.base_mean, got.system_mean, got.difference, got.relative) == (1.0, 3.0, 2.0, 2.0)
    assert (got.low, got.high) == (1.0, 3.0)  # 5% and 95% lie in the quarters at both ends
    assert (got.relative_low, got.relative_high) == (1.0, 3.0)
    assert got.p_value < 0.001  # shifted to mean 0 the draws reach -1 .. 1, never as far as 2
    assert got.per_seed == ((1.0, 3.0),)


def test_the_p_value_by_enumeration() -> None:
    differences = np.array([1.0, -0.5, 2.0, 0.25])
    observed = differences.mean()
    draws = np.array([differences[list(drawn)].mean() for drawn in product(range(4), repeat=4)])
    exact = (np.abs(draws - observed) >= observed - 1e-12).mean()
    got = paired_bootstrap(np.zeros(4), differences, resamples=50_000)
    assert got.p_value == pytest.approx(exact, abs=0.005)
    assert 0.01 < exact < 0.5
    assert got.relative is None
    assert got.relative_low is None


def test_pairing_counts() -> None:
    """Images differ much, systems little but always the same way: unpaired one would see nothing."""
    draw = np.random.default_rng(0)
    base = draw.gamma(1.0, 1.0, size=200)
    got = paired_bootstrap(base, base + 0.01)
    assert got.low == pytest.approx(0.01)
    assert got.high == pytest.approx(0.01)
    assert got.p_value < 0.001


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered, small = 0, 0
    for trial in range(200):
        base = draw.normal(1.0, 1.0, size=60)
        system = base + draw.normal(0.3, 0.8, size=60)
        got = paired_bootstrap(base, system, resamples=500, seed=trial)
        covered += got.low <= 0.3 <= got.high
        nothing = paired_bootstrap(base, base + draw.normal(0.0, 0.8, size=60), resamples=500, seed=trial)
        small += nothing.p_value <= 0.05
    assert 0.90 <= covered / 200 <= 0.99
    assert 0.01 <= small / 200 <= 0.10


def test_the_same_seed_gives_the_same_figures() -> None:
    draw = np.random.default_rng(2)
    base, system = draw.normal(size=(2, 50))
    assert paired_bootstrap(base, system, seed=7) == paired_bootstrap(base, system, seed=7)
    assert paired_bootstrap(base, system, seed=7) != paired_bootstrap(base, system, seed=8)


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    base, system = draw.normal(1, 1, size=(2, 30))
    whole = paired_bootstrap(base, system, resamples=100)
    monkeypatch.setattr("raycap.evaluate.bootstrap._DRAWS_AT_ONCE", 30 * 7)
    assert paired_bootstrap(base, system, resamples=100) == whole


def test_several_seeds_are_averaged_before_images_are_drawn() -> None:
    draw = np.random.default_rng(4)
    base = draw.gamma(2.0, 0.4, size=(3, 80))
    system = base + draw.normal(0.1, 0.3, size=(3, 80))
    got = paired_bootstrap(base, system, labels=("mle_best", "scst"), decoding="greedy")
    averaged = paired_bootstrap(base.mean(axis=0), system.mean(axis=0))
    assert (got.low, got.high, got.p_value) == (averaged.low, averaged.high, averaged.p_value)
    assert got.per_seed == tuple(zip(base.mean(axis=1), system.mean(axis=1), strict=True))
    assert (got.base, got.system, got.decoding, got.num_images) == ("mle_best", "scst", "greedy", 80)


def test_in_words() -> None:
    got = paired_bootstrap([1.0, 1.0], [2.0, 4.0])
    assert got.sureness == "95% interval +100.0% to +300.0%, p < 0.001"
    no_base = paired_bootstrap([0.0, 0.0, 0.0], [-1.0, 0.5, 0.5], resamples=999)
    assert no_base.sureness == f"95% interval −1.000 to +0.500, p = {no_base.p_value:.3f}"


@pytest.mark.parametrize(
    ("base", "system", "says"),
    [
        ([1.0, 2.0], [1.0], "same seeds and images"),
        ([], [], "at least one image"),
        ([1.0], [float("nan")], "scst = 1"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), r"\[S, N\]"),
    ],
)
def test_values_that_do_not_pair_are_refused(base: object, system: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        paired_bootstrap(base, system, labels=("mle", "scst"))  # type: ignore[arg-type]
