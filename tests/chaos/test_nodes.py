"""A node of a cluster dies with everything on it, and another one joins: two ranks learn what they learn unharmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from raycap.train.journal import read_log
from tests.chaos.monkey import KILLS, SEED
from tests.cluster.test_equality import assert_equal

pytestmark = pytest.mark.slow
LOSSES, EVERY = max(1, KILLS // 10), 10
STEPS = EVERY * (LOSSES + 2)
CLUSTER = {
    "rollout_workers": 2, "rollout_cpus": 1, "learner_workers": 2, "learner_cpus": 1, "max_failures": 1000,
    "quarantine_after": 1000,
}  # fmt: skip


def test_a_node_is_lost_and_another_one_joins(tiny_run: Any) -> None:
    rewards = {"cider": {"num_cpus": 0.5, "workers": 2}}
    sections = {"cluster": CLUSTER, "rewards": rewards, "scst": {"steps": STEPS, "select_every": 5}}
    whole, run = tiny_run("whole", **sections), tiny_run("nodes", **sections)
    recipes = json.dumps([each.recipe.model_dump(mode="json") for each in (whole, run)])
    command = [sys.executable, "-m", "tests.chaos.on_nodes", recipes, str(LOSSES), str(EVERY), str(SEED)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    killed = [each["killed"] for each in told if "killed" in each]
    assert len(killed) == LOSSES
    assert "ray::RayTrainWorker" in killed[0], "a rank of the learner was on it"
    assert sum("added" in each for each in told) == LOSSES
    folder = run.path("scst", 0)
    assert int((folder / "incarnation").read_text()) >= 1
    assert_equal(folder, whole.path("scst", 0), STEPS)
    assert [r["step"] for r in read_log(folder) if "pg_loss" in r] == list(range(1, STEPS + 1))
