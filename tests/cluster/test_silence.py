"""The driver's watch on a learner that says nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

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
    clock[0] = 455
    with pytest.raises(WorkFailed, match=r"= 100: the learner has logged nothing for 225 s: it hangs, or cannot start"):
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


def test_a_storage_that_does_not_answer_is_no_silence_and_no_sign(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n")
    watch, stat, fails = Silence(log, stall_timeout_s=100, start_s=20), Path.stat, [False]

    def hiccups(self: Path, *given: Any, **named: Any) -> Any:
        if fails[0] and self == log:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(self, *given, **named)

    monkeypatch.setattr(Path, "stat", hiccups)
    watch.look()
    for now in range(5, 200, 5):
        clock[0], fails[0] = now, not fails[0]
        watch.look()
    assert watch.silent_s() == 195
    clock[0], fails[0] = 221, True
    with pytest.raises(WorkFailed, match="nothing for 221 s"):
        watch.look()


def test_it_is_looked_at_every_few_seconds(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    watch, looks = Silence(tmp_path / "log.jsonl", stall_timeout_s=100), list[float]()

    def found() -> int:
        looks.append(clock[0])
        return 0

    monkeypatch.setattr(watch, "_found", found)
    for half in range(100):
        clock[0] = half / 2
        watch.look()
    assert looks == list(range(0, 50, 5))
