"""A stage's log as progress on the driver's terminal."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.following import followed
from raycap.train.tail import Tail


def record(step: int, **also: Any) -> dict[str, Any]:
    return {"step": step, "total_steps": 9, "leases": 4, "max_policy_lag": 0, "workers/rollout": 1,
            "workers/reward/clip": 4, "seconds/generate": 0.4, "seconds/reward/clip": 24.0, "seconds/wait": 6.4,
            "seconds/learn": 1.0, "seconds/publish": 0.1, "idle/learner": 0.85, "idle/actors": 0.95,
            **also}  # fmt: skip


def write(folder: Path, *records: dict[str, Any]) -> None:
    with open(folder / "log.jsonl", "a") as log:
        log.write("".join(json.dumps(each) + "\n" for each in records))


def test_it_tells_figures_warnings_and_what_holds_the_run_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look at `select` that took long at one step is not taken for every later step's."""
    write(tmp_path, record(1, **{"seconds/look": 20.0, "select_cider": 0.5, "warning": "far below"}))
    write(tmp_path, *(record(step) for step in range(2, 9)))
    with followed(tmp_path, "scst"):
        time.sleep(1.5)
        write(tmp_path, record(9))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "scst            warning: far below"
    assert said[1].startswith("scst            8/9 steps")
    assert "select CIDEr-D 0.500  learner waits 64% for rewards: clip; lower scst.lease_size" in said[1]
    assert said[-1].startswith("scst            9/9 steps")


def test_a_storage_that_does_not_answer_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look, failures = Tail.look, [0]

    def hiccups(self: Tail) -> Any:
        if failures[0] < 2:
            failures[0] += 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return look(self)

    monkeypatch.setattr(Tail, "look", hiccups)
    write(tmp_path, {"warning": "planted"})
    with followed(tmp_path, "scst"):
        deadline = time.monotonic() + 60
        while failures[0] < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "warning: planted" in capsys.readouterr().out, "the last look comes after the end"
