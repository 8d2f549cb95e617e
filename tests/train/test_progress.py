"""Progress as lines, on a clock of the test's own."""

from __future__ import annotations

import io

import pytest

from raycap.train import progress
from raycap.train.progress import Progress, clock


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-3, "0:00"), (0, "0:00"), (12.4, "0:12"), (59.6, "1:00"), (600, "10:00"), (4000, "1:06:40")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_every_few_seconds_with_rate_and_time_left_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    time, out = Time(), io.StringIO()
    monkeypatch.setattr(progress, "time", time)
    shown = Progress("scst", "steps", every_s=5, out=out)
    for done in range(21):
        shown.update(done, 20, note="CIDEr 0.9" if done == 20 else "")
        shown.update(done, 20)  # asked again before anything moved
        time.now += 2
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["scst", "0/20", "steps", "0%"]
    assert lines[1].split() == ["scst", "3/20", "steps", "15%", "0.5", "steps/s", "ETA", "0:34"]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [0, 3, 6, 9, 12, 15, 18, 20]
    assert lines[-1].split() == ["scst", "20/20", "steps", "100%", "0.5", "steps/s", "done", "CIDEr", "0.9"]


def test_going_back_to_a_checkpoint_is_no_negative_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    time, out = Time(), io.StringIO()
    monkeypatch.setattr(progress, "time", time)
    shown = Progress("scst", "steps", every_s=0, out=out)
    for done in (59, 30, 32):
        shown.update(done, 120)
        time.now += 2
    assert [line.split()[1:] for line in out.getvalue().splitlines()] == [
        ["59/120", "steps", "49%"],
        ["30/120", "steps", "25%"],
        ["32/120", "steps", "27%", "1.0", "steps/s", "ETA", "1:28"],
    ]  # fmt: skip
