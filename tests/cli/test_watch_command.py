"""`raycap watch`: a stage's log on the terminal."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raycap.cli.watching import sparkline, watch
from raycap.errors import CheckpointError


def record(step: int) -> dict[str, Any]:
    return {"step": step, "total_steps": 40, "seconds": 2.0 * step, "reward/clip/sampled": 0.01 * step,
            "reward/clip/greedy": 0.5, "idle/learner": 0.4, "idle/actors": 0.95, "seconds/wait": 0.8,
            "seconds/learn": 1.1, "seconds/publish": 0.1, "seconds/generate": 0.1, "seconds/reward": 3.0,
            "seconds/reward/clip": 2.9, "workers/rollout": 1, "workers/reward/clip": 2, "leases": 4,
            "max_policy_lag": 4, **({"select_cider": 0.5, "seconds/look": 1.0} if step == 10 else {})}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage that has begun, without a log."""
    (tmp_path / "stage.json").write_text("{}")
    return tmp_path


def write(stage: Path, steps: range) -> Path:
    log = stage / "log.jsonl"
    log.write_text("".join(json.dumps(record(step)) + "\n" for step in steps))
    return log


def shown(folder: Path, width: int = 140) -> str:
    return CliRunner().invoke(watch, [str(folder), "--once"], terminal_width=width, catch_exceptions=False).output


def test_it_shows_how_far_how_fast_and_who_waits(stage: Path) -> None:
    with open(write(stage, range(1, 21)), "a") as log:
        log.write('{"step": 21, "tot')  # is being written
    said = shown(stage)
    for text in ("20 of 40 steps", "0.50 steps/s", "ETA 0:40", "reward/clip/sampled", "0.105", "0.500 (best 0.500)",
                 "seconds a step: wait 0.80", "look 0.05",
                 "learner waits 39% for rewards: clip; raise rewards.clip.workers",
                 "last line 0 s ago"):  # fmt: skip
        assert text in said, said


def test_the_look_before_the_first_step_does_not_thin_the_means(stage: Path) -> None:
    first = {"step": 0, "total_steps": 40, "seconds": 0.0, "select_cider": 0.5, "best": True}
    (stage / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (first, record(1))))
    assert "wait 0.80, learn 1.10, publish 0.10" in shown(stage)


def test_one_that_says_nothing_for_long_is_spoken_of(stage: Path) -> None:
    log = write(stage, range(1, 21))  # steps of 2 s
    for ago, said in ((20, "last line 20 s ago"), (300, "last line 5:00 ago, and no step took longer than 0:02")):
        os.utime(log, (time.time() - ago,) * 2)
        assert said in shown(stage)
    (stage / "finished.json").write_text("{}")
    assert "last line" not in shown(stage)


def test_what_has_not_begun_says_so(stage: Path) -> None:
    assert "has not begun" in shown(stage)
    with pytest.raises(CheckpointError, match=r"there is no such stage .*STORAGE/NAME/scst"):
        shown(stage / "nowhere")


def test_a_run_is_no_stage_and_those_below_it_are_named(stage: Path) -> None:
    for name in ("run/prepare", "run/seed-0/mle", "run/seed-0/scst"):
        (stage / name).mkdir(parents=True)
        (stage / name / "stage.json").write_text("{}")
        if "seed" in name:
            write(stage / name, range(1, 3))
    with pytest.raises(CheckpointError, match=r"is no stage.* \(add one of seed-0/mle, seed-0/scst\)"):
        shown(stage / "run")
    with pytest.raises(CheckpointError, match=r"is no stage.* \(add one of mle, scst\)"):
        shown(stage / "run" / "seed-0")


def test_it_ends_with_the_stage(stage: Path) -> None:
    write(stage, range(10, 11))
    (stage / "finished.json").write_text("{}")
    ended = CliRunner().invoke(watch, [str(stage)], catch_exceptions=False)
    assert ended.exit_code == 0


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▁"), ([0, 1], "▁█"), ([3, 3, 3], "▁▁▁"), ([1.0, 1.0001], "▁▁"), (list(range(60)), None)],
)
def test_sparklines(values: list[float], bars: str | None) -> None:
    drawn = sparkline(values)
    if bars is not None:
        assert drawn == bars
    else:
        assert len(drawn) == 24
        assert drawn == "".join(sorted(drawn))
