"""Which images a step trains on: a function of (seed, step) alone, so a resume repeats and loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raycap.types import Lease, Prompt


def permutation(seed: int, epoch: int, count: int, stream: int = 0) -> NDArray[np.int64]:
    """The order of `count` items in an epoch, the same on every machine (numpy's Philox, keyed by all arguments)."""
    key = np.random.SeedSequence([seed, epoch, stream, count])
    return np.random.Generator(np.random.Philox(key)).permutation(count)


class PromptSchedule:
    """Images in seeded epochs, `batch_size` a step; a step may reach over the end of an epoch into the next one.

    Every image comes exactly once an epoch.
    """

    def __init__(self, image_ids: Sequence[str], *, batch_size: int, lease_size: int, seed: int) -> None:
        self.image_ids = tuple(image_ids)
        self.batch_size, self.lease_size, self.seed = batch_size, lease_size, seed
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, permutation(self.seed, epoch, len(self.image_ids)))
        return self._cached[1]

    def prompts(self, step: int) -> tuple[Prompt, ...]:
        """The step's images in their order."""
        chosen: list[Prompt] = []
        seen: Counter[int] = Counter()
        for place in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, within = divmod(place, len(self.image_ids))
            position = int(self._epoch(epoch)[within])
            # An image that comes again in a step (at the end of an epoch, or where there are few) is another prompt:
            # with the same position it would draw the same captions.
            again = seen[position] * len(self.image_ids)
            seen[position] += 1
            chosen.append(Prompt(self.image_ids[position], position + again))
        return tuple(chosen)

    def leases(self, step: int) -> tuple[Lease, ...]:
        """The step's prompts cut into fixed, numbered slices of `lease_size`."""
        prompts = self.prompts(step)
        cuts = range(0, len(prompts), self.lease_size)
        return tuple(Lease(step, n, prompts[a : a + self.lease_size]) for n, a in enumerate(cuts))
