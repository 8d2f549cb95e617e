"""Seconds of a loop's parts, lap by lap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Sums up what the parts of a lap took.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._begun = clock, clock()
        self._parts: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What happens inside is part of this lap under a name."""
        begun = self._clock()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + self._clock() - begun

    def lap(self) -> tuple[float, dict[str, float]]:
        """End the lap: its seconds, and those of its parts."""
        now = self._clock()
        whole, parts = now - self._begun, self._parts
        self._begun, self._parts = now, {}
        return whole, parts
