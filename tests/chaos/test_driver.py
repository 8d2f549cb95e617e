"""The driver ends, by whatever signal: the same command goes on, and what it learns is what an unharmed run learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.stages import Run
from raycap.train.journal import FolderJournal, read_log
from tests.chaos.monkey import logged
from tests.cluster.test_equality import assert_equal, one_process

pytestmark = pytest.mark.slow
STEPS = 150
"""So many that each signal comes before the last of them."""
DRIVER = """
import json, sys
import ray
from raycap.cluster import job, run
from raycap.recipe.load import validate
job.load_recipe = lambda *_: validate(json.loads(sys.argv[1]))
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
job.main([])
"""


@pytest.fixture
def driver() -> Any:
    """driver(run): its command, started."""
    started: list[subprocess.Popen[str]] = []

    def start(run: Run) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, json.dumps(run.recipe.model_dump(mode="json"))]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
                       "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended_by(process: subprocess.Popen[str], folder: Path, how: int, step: int) -> str:
    """What a driver said that got a signal once its run had logged a step."""
    deadline = time.monotonic() + 300
    while logged(folder) < step:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    said, _ = process.communicate(timeout=120)
    return said


def test_the_same_command_goes_on(driver: Callable[[Run], Any], tiny_run: Any, tmp_path: Path) -> None:
    run = tiny_run("driver", scst={"steps": STEPS, "select_every": 10})
    expected = one_process(run, tmp_path / "reference")
    folder = run.path("scst", 0)
    killed = driver(run)
    ended_by(killed, folder, signal.SIGKILL, 12)
    assert killed.returncode == -signal.SIGKILL
    before = _newest(folder)
    assert 10 <= before < STEPS
    for how, step in ((signal.SIGTERM, 24), (signal.SIGINT, 37)):
        process = driver(run)
        said = ended_by(process, folder, how, step)
        assert process.returncode == 1, said
        assert "stopping after this step, with a checkpoint (once more: at once)" in said
        assert f"raycap: stopped after step {_newest(folder)} with a checkpoint: {how.name} " in said
        assert "the same command goes on from there" in said
        assert "Traceback" not in said
        assert step <= _newest(folder) < STEPS
        assert _newest(folder) == logged(folder), "nothing that was learned is lost"
    last = driver(run)
    said, _ = last.communicate(timeout=600)
    assert last.returncode == 0, said
    assert_equal(folder, expected, STEPS)
    assert int((folder / "incarnation").read_text()) >= 3, "and one more where the Exchange was slow to answer"
    assert [r["step"] for r in read_log(folder) if "pg_loss" in r] == list(range(1, STEPS + 1))


def _newest(folder: Path) -> int:
    return int(FolderJournal(folder).checkpoints[-1].name.removeprefix("step-"))
