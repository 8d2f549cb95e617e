"""Seconds by part, lap by lap, on a clock of our own."""

from __future__ import annotations

import pytest

from raycap.train.stopwatch import Stopwatch


def test_a_lap_has_its_parts_and_the_next_begins_anew() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    for part, seconds in (("wait", 2.0), ("learn", 3.0), ("wait", 0.5)):
        with watch.of(part):
            now[0] += seconds
        now[0] += 1.0
    assert watch.lap() == (8.5, {"wait": 2.5, "learn": 3.0})

    def fail() -> None:
        with watch.of("look"):
            now[0] += 4.0
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fail()
    assert watch.lap() == (4.0, {"look": 4.0})
