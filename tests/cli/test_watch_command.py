"""`raycap watch`: a stage's log on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raycap.cli.watching import sparkline, watch
from raycap.errors import CheckpointError


def record(step: int) -> dict[str, Any]:
    return {"step": step, "total_steps": 40, "seconds": 2.0 * step, "reward/clip/sampled": 0.01 * step,
            "reward/clip/greedy": 0.5, "idle/learner": 0.41, "idle/actors": 0.0, "seconds/wait": 0.8,
            "seconds/learn": 1.1, "seconds/publish": 0.1, "seconds/generate": 0.1, "seconds/reward": 3.0,
            "seconds/reward/clip": 2.9, **({"select_cider": 0.5} if step == 10 else {})}  # fmt: skip


def shown(folder: Path) -> str:
    return CliRunner().invoke(watch, [str(folder), "--once"], terminal_width=140, catch_exceptions=False).output


def test_it_shows_how_far_how_fast_and_who_waits(tmp_path: Path) -> None:
    lines = [json.dumps(record(step)) for step in range(1, 21)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 21, "tot']))  # the last one is being written
    said = shown(tmp_path)
    for text in ("20 of 40 steps", "0.50 steps/s", "ETA 0:40", "reward/clip/sampled", "0.105", "0.500 (best 0.500)",
                 "wait 0.80 s", "learner waits 41% for rewards: clip"):  # fmt: skip
        assert text in said, said


def test_what_has_not_begun_says_so(tmp_path: Path) -> None:
    assert "has not begun" in shown(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such stage"):
        shown(tmp_path / "nowhere")


def test_it_ends_with_the_stage(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(record(10)) + "\n")
    (tmp_path / "finished.json").write_text("{}")
    ended = CliRunner().invoke(watch, [str(tmp_path)], catch_exceptions=False)
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
