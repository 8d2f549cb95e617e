"""The driver's watch on a learner that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.cluster import silence
from raycap.cluster.silence import Silence
from raycap.errors import WorkFailed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(silence.time, "monotonic", lambda: now[0])
    return now


def test_every_line_gives_time_and_silence_ends_it(tmp_path: Path, clock: list[float]) -> None:
    log = tmp_path / "log.jsonl"
    watch = Silence(log, stall_timeout_s=100, start_s=20)
    clock[0] = 219
    watch.look()
    log.write_text("{}\n")
    clock[0] = 230
    watch.look()
    clock[0] = 449
    watch.look()
    clock[0] = 451
    with pytest.raises(
        WorkFailed, match=r"= 100: the learner has logged nothing for 221 s: it hangs, or finds no room"
    ):
        watch.look()


def test_a_log_that_a_resume_cut_has_moved(tmp_path: Path, clock: list[float]) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n{}\n")
    watch = Silence(log, stall_timeout_s=100, start_s=20)
    watch.look()
    clock[0] = 200
    log.write_text("{}\n")
    watch.look()
    clock[0] = 400
    watch.look()
