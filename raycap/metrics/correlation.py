"""Agreement of a metric with human judgements: Kendall's τ-b and τ-c, ties exact, O(n log n).

Both τ count concordant minus discordant pairs: τ-b = (C − D) / √((P − T_x)(P − T_y)) (Kendall 1945), τ-c =
2m(C − D) / (n²(m − 1)) (Stuart 1953). Pairs are counted in whole numbers: no rounding until the last division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycap.errors import Refused
from raycap.metrics.ngrams import Floats, Ints


@dataclass(frozen=True)
class PairCounts:
    """Pairs of n observations (x, y).

    Attributes:
        observations: n.
        pairs: n(n−1)/2.
        concordant_minus_discordant: pairs that x and y order alike, less those that they order differently.
        tied_x, tied_y: pairs with equal x, with equal y.
        fewest_values: the smaller of the numbers of distinct x and of distinct y.
    """

    observations: int
    pairs: int
    concordant_minus_discordant: int
    tied_x: int
    tied_y: int
    fewest_values: int

    def tau_b(self) -> float:
        """(C − D) / √((P − T_x)(P − T_y)); NaN when x or y is constant."""
        scale = math.sqrt((self.pairs - self.tied_x) * (self.pairs - self.tied_y))
        return self.concordant_minus_discordant / scale if scale else math.nan

    def tau_c(self) -> float:
        """2(C − D) / (n²(m − 1)/m), m the smaller number of distinct values; NaN when x or y is constant."""
        m = self.fewest_values
        return 2 * self.concordant_minus_discordant * m / (self.observations**2 * (m - 1)) if m > 1 else math.nan


def count_pairs(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> PairCounts:
    """Count the pairs of two equally long series (Knight 1966: sort by x, then discordant pairs are inversions of y).

    Raises:
        Refused: different lengths, fewer than two observations, or NaN.
    """
    first, second = _ranks(x, "x"), _ranks(y, "y")
    n = len(first)
    if n != len(second) or n < 2:
        raise Refused("two series of the same length ≥ 2 are needed", key="x, y", value=[n, len(second)])
    joint = first * (int(second.max()) + 1) + second
    order = np.argsort(joint, kind="stable")  # by x, then by y: pairs with equal x are no inversions
    discordant = _inversions(second[order])
    pairs, tied_x, tied_y, tied_both = n * (n - 1) // 2, _tied(first), _tied(second), _tied(joint)
    return PairCounts(
        observations=n,
        pairs=pairs,
        concordant_minus_discordant=pairs - tied_x - tied_y + tied_both - 2 * discordant,
        tied_x=tied_x,
        tied_y=tied_y,
        fewest_values=int(min(first.max(), second.max())) + 1,
    )


def kendall_tau_b(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """τ-b = (C − D) / √((P − T_x)(P − T_y)) of two series, −1..1; NaN when one is constant (Kendall 1945).

    C and D: concordant and discordant pairs; P: all n(n − 1)/2; T_x, T_y: those tied in x, in y.

    Raises:
        Refused: see `count_pairs`.
    """
    return count_pairs(x, y).tau_b()


def kendall_tau_c(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """τ-c = 2m(C − D) / (n²(m − 1)) of two series, −1..1; NaN when one is constant (Stuart 1953).

    C and D: concordant and discordant pairs; m: the smaller number of distinct values.

    Raises:
        Refused: see `count_pairs`.
    """
    return count_pairs(x, y).tau_c()


def _ranks(values: Any, name: str) -> Ints:
    """Dense ranks 0, 1, ...; equal values share one."""
    numbers = np.asarray(values, np.float64)
    if np.isnan(numbers).any():
        raise Refused(f"{int(np.isnan(numbers).sum())} value(s) are NaN", key=name)
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _tied(ranks: Ints) -> int:
    counts = np.unique(ranks, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: Ints) -> int:
    """Pairs i < j with ranks[i] > ranks[j].

    Two numbers differ first in some bit. Bit by bit from the top: among the numbers that agree in all higher bits,
    every 1 before a 0 is one inversion; then the numbers are sorted (stably) by this bit, too.
    """
    total, row = 0, ranks
    for bit in reversed(range(int(ranks.max()).bit_length())):
        ones = row >> bit & 1
        before = np.cumsum(ones) - ones
        group = row >> (bit + 1)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(np.append(starts, len(row)))
        total += int((before - np.repeat(before[starts], sizes))[ones == 0].sum())
        row = row[np.argsort(row >> bit, kind="stable")]
    return total
