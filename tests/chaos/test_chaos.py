"""Whatever is killed, and whenever: the run ends by itself, and what it learned is what an unharmed run learns.

`RAYCAP_CHAOS_KILLS` says how many processes are killed (8; `make chaos`: 100), `RAYCAP_CHAOS_SEED` in which order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster.run import run_recipe
from raycap.train.journal import read_log
from tests.cluster.test_equality import assert_equal, one_process
from tests.processes import processes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TITLES = {
    "rollout worker": "ray::RolloutActor",
    "reward worker": "ray::RewardWorker",
    "Exchange": "ray::Exchange",
    "learner": "ray::RayTrainWorker",
}
KILLS, SEED = int(os.environ.get("RAYCAP_CHAOS_KILLS", "8")), int(os.environ.get("RAYCAP_CHAOS_SEED", "0"))


class Monkey(threading.Thread):
    """Kills processes by a seeded plan: each kind in turn, shuffled, after a pause of up to `longest_s`."""

    def __init__(self, folder: Path, kills: int, seed: int, longest_s: float = 1.5) -> None:
        super().__init__(daemon=True)
        draws = np.random.default_rng(seed)
        kinds = [k for _ in range(-(-kills // len(TITLES))) for k in draws.permutation(list(TITLES))][:kills]
        self.plan = [
            (str(kind), float(pause)) for kind, pause in zip(kinds, draws.uniform(0, longest_s, kills), strict=True)
        ]
        self.folder, self.killed, self.over = folder, Counter[str](), threading.Event()

    def run(self) -> None:
        while not (self.folder / "log.jsonl").exists() and not self.over.wait(0.05):
            pass  # it has begun when its first look is in the log
        for kind, pause in self.plan:
            if self.over.wait(pause):
                return
            while not (alive := processes(TITLES[kind])):  # it is being started again
                if self.over.wait(0.1):
                    return
            try:
                os.kill(alive[0], signal.SIGKILL)
                self.killed[kind] += 1
            except ProcessLookupError:
                continue


def ravaged(run: Any, kills: int, seed: int) -> Monkey:
    monkey = Monkey(run.path("scst", 0), kills, seed)
    monkey.start()
    try:
        run_recipe(run.recipe)
    finally:
        monkey.over.set()
        monkey.join(timeout=10)
    return monkey


CLUSTER = {"rollout_workers": 2, "max_failures": 1000, "quarantine_after": 1000, "lease_timeout_s": 30}


def test_at_lag_0_nothing_that_is_killed_changes_what_is_learned(
    ray_session: Any, tiny_run: Any, tmp_path: Path
) -> None:
    steps = 30 * KILLS
    run = tiny_run("ravaged", cluster=CLUSTER, scst={"steps": steps, "select_every": 10})
    expected = one_process(run, tmp_path / "reference")
    monkey = ravaged(run, KILLS, SEED)
    assert sum(monkey.killed.values()) == KILLS, f"the run was over before: {monkey.killed}"
    assert set(monkey.killed) == set(TITLES)
    assert_equal(run.path("scst", 0), expected, steps)


def test_at_lag_2_no_prompt_is_lost_or_comes_twice(ray_session: Any, tiny_run: Any) -> None:
    steps = 30 * KILLS
    run = tiny_run("stale", cluster=CLUSTER, scst={"steps": steps, "select_every": 10, "max_policy_lag": 2})
    monkey = ravaged(run, KILLS, SEED + 1)
    assert sum(monkey.killed.values()) == KILLS, f"the run was over before: {monkey.killed}"
    from raycap.cluster.training_stages import scst_schedule
    from raycap.train.step_figures import prompts_digest

    schedule = scst_schedule(run, 0)
    found = [record for record in read_log(run.path("scst", 0)) if "prompts" in record]
    assert [record["step"] for record in found] == list(range(1, steps + 1))
    assert [r["prompts"] for r in found] == [prompts_digest(schedule.leases(step)) for step in range(steps)]
    assert all(0 <= r["policy_lag"] <= 2 for r in found)


DRIVER = """
import sys, pickle
from raycap.cluster.run import run_recipe
from raycap.recipe.load import validate
import json
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
run_recipe(validate(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_driver_is_killed_and_the_same_command_goes_on(tiny_run: Any, tmp_path: Path, how: int) -> None:
    run = tiny_run("driver", cluster=CLUSTER, scst={"steps": 60, "select_every": 10})
    expected = one_process(run, tmp_path / "reference")
    folder = run.path("scst", 0)
    command = [sys.executable, "-c", DRIVER, json.dumps(run.recipe.model_dump(mode="json"))]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-000010").exists() and time.monotonic() < deadline:
        assert first.poll() is None, first.stdout.read() if first.stdout else ""
        time.sleep(0.01)
    first.send_signal(how)
    said, _ = first.communicate(timeout=60)
    assert first.returncode != 0
    done = max(int(f.name.removeprefix("step-")) for f in (folder / "checkpoints").glob("step-*"))
    assert 10 <= done < 60
    if how == signal.SIGTERM:
        assert "stopping after this step, with a checkpoint" in said
        assert "Stopped" in said
        logged = max(record["step"] for record in read_log(folder) if "step" in record)
        assert done == logged, "nothing that was learned is lost"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert_equal(folder, expected, 60)
