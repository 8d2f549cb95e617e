"""Random choices, the same on every machine and in every version of Python and numpy: SplitMix64 from a name."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


class Draws:
    """A stream of choices, addressed by names: `Draws("scene", seed, scene_id)`."""

    def __init__(self, *names: str | int) -> None:
        name = "\0".join(map(str, names)).encode()
        self._state = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")

    def _next(self) -> int:
        self._state = (self._state + _STEP) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, limit: int) -> int:
        """A whole number in [0, limit)."""
        return (self._next() * limit) >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        """One item, all equally likely."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[Item, int]]) -> Item:
        """One item of (item, weight) pairs."""
        left = self.below(sum(weight for _, weight in items))
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        raise ValueError("weights must be positive")

    def weighted_order(self, items: Sequence[tuple[Item, int]]) -> list[Item]:
        """All items, drawn one after the other by weight, without putting back."""
        left, ordered = list(items), []
        while left:
            chosen = self.weighted([(place, weight) for place, (_, weight) in enumerate(left)])
            ordered.append(left.pop(chosen)[0])
        return ordered

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order."""
        return self.weighted_order([(item, 1) for item in items])

    def noise(self, *shape: int) -> NDArray[np.int64]:
        """Independent whole numbers in -255..255, triangular around 0, int64 of the given shape."""
        count = int(np.prod(shape))
        with np.errstate(over="ignore"):
            mixed = np.uint64(self._next()) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        low, high = (mixed >> np.uint64(32)) & np.uint64(255), (mixed >> np.uint64(48)) & np.uint64(255)
        return (low.astype(np.int64) - high.astype(np.int64)).reshape(shape)
