"""Whole nodes go, on a cluster of three on this machine: a head without CPUs and two nodes with two each, which learner
and rollout workers fill. The run goes on with what is left, and learns what an unharmed one learns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_equality import assert_equal, one_process

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 40
CLUSTER = {"rollout_workers": 3, "rollout_cpus": 1, "learner_cpus": 1, "stall_timeout_s": 300, "max_failures": 5}

DRIVER = """
import json, os, subprocess, sys, threading, time, traceback
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from raycap.cluster.preemption import ASK_EVERY_S
from raycap.cluster.run import run_recipe
from raycap.recipe.load import validate

recipe, doomed, deadline_s = validate(json.loads(sys.argv[1])), sys.argv[2], float(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address  # there may be others on this machine
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
ray.init(address=cluster.address, logging_level="ERROR")
cluster.wait_for_nodes()

def node_of_the_learner():
    return next(a["Address"]["NodeID"] for a in ray._private.state.actors().values()
                if a["ActorClassName"] == "RayTrainWorker" and a["State"] == "ALIVE")

def told_of(logs):
    # what the learner itself wrote: of a node that goes, Ray may bring the last lines to the driver or not
    def told():
        lines = [line for log in logs.glob("worker-*.out") for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if "will be taken away" in line]
    for _ in range(int(deadline_s)):
        if told():
            time.sleep(2 * ASK_EVERY_S + 2)  # it has asked again by then, and must not tell again
            return "\\n".join("TOLD " + line for line in told())
        time.sleep(1)
    return "TOLD nothing"

def strike():
    folder = Path(recipe.storage) / recipe.name / "scst" / "checkpoints"
    while not (folder / "step-000010").exists():
        time.sleep(0.05)
    learner = node_of_the_learner()
    node = next(n for n in nodes if (n.node_id == learner) == (doomed == "learner"))
    print("STRIKE", flush=True)
    if deadline_s:
        ray_command = [sys.executable, "-m", "ray.scripts.scripts"]  # `ray` itself may not be on the path
        subprocess.run([*ray_command, "drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}",
                        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                        f"--deadline-remaining-seconds={deadline_s:g}"], check=True)
        print(told_of(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"), flush=True)
    cluster.remove_node(node, allow_graceful=False)
    print("GONE", flush=True)
    (Path(recipe.storage) / "gone").touch()

def strike_or_end():
    try:
        strike()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

threading.Thread(target=strike_or_end, daemon=True).start()
run_recipe(recipe)
ray.shutdown()
cluster.shutdown()
print("END", flush=True)
os._exit(0)  # of a cluster with a killed node the last of Ray's threads may crash at a plain end
"""


def struck(run: Any, doomed: str, deadline_s: float = 0.0, **environment: str) -> str:
    """What a run says of which a node goes after step 10: at once, or with so many seconds of notice as soon as the
    learner has told of it."""
    command = [sys.executable, "-c", DRIVER, json.dumps(run.recipe.model_dump(mode="json")), doomed, str(deadline_s)]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    env.pop("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", None)  # other tests' runs are on one node
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=800, check=False
    )
    assert done.stdout.endswith("END\n"), done.stdout[-5000:]
    return done.stdout


def slow_until_gone(storage: Path, nap_s: float = 0.1) -> dict[str, Any]:
    """Rewards that leave time to strike: the reference, made afterwards, does not wait."""
    source = "tests.cluster.faulty:Unhurried"
    return {"cider": {}, "mine": {"source": source, "options": {"until": str(storage / "gone"), "nap_s": nap_s}}}


def finished(run: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path("scst", 0) / "finished.json").read_text())
    return found


def test_without_the_node_of_some_workers_the_others_go_on(tiny_run: Any, tmp_path: Path) -> None:
    rewards = slow_until_gone(tmp_path / "workers")
    run = tiny_run("workers", cluster=CLUSTER, rewards=rewards, scst={"steps": 2 * STEPS, "select_every": 10})
    said = struck(run, "workers")
    assert "GONE" in said, "it was over before"
    assert_equal(run.path("scst", 0), one_process(run, tmp_path / "reference"), 2 * STEPS)
    assert len(finished(run)["workers_lost"]) >= 2


def test_without_its_node_the_learner_takes_the_place_of_workers(tiny_run: Any, tmp_path: Path) -> None:
    """The node that is left is full of rollout workers: they make room, or all would wait for ever."""
    run = tiny_run("learner", cluster=CLUSTER, scst={"steps": STEPS, "select_every": 10})
    said = struck(run, "learner")
    assert "rollout workers make place until it is there" in said
    assert_equal(run.path("scst", 0), one_process(run, tmp_path / "reference"), STEPS)
    assert finished(run)["exchange"]["counts"]["workers_sent_home"] >= 2


def test_without_its_node_a_reward_takes_the_place_of_a_worker(tiny_run: Any, tmp_path: Path) -> None:
    """The node that is left is full of the learner, of one reward and two workers; the other reward and two workers'
    replacements want the same place."""
    cluster = {**CLUSTER, "rollout_workers": 4, "rollout_cpus": 0.25, "learner_cpus": 1.25, "placement": "SPREAD"}
    placed = {"cider": {"num_cpus": 0.25}, "length": {"num_cpus": 0.25, "weight": 0.1}}
    rewards = {**slow_until_gone(tmp_path / "rewards"), **placed}
    run = tiny_run("rewards", cluster=cluster, rewards=rewards, scst={"steps": 2 * STEPS, "select_every": 10})
    said = struck(run, "workers")
    assert "GONE" in said, "it was over before"
    assert_equal(run.path("scst", 0), one_process(run, tmp_path / "reference"), 2 * STEPS)


def test_a_node_that_is_taken_away_is_told_of(tiny_run: Any, tmp_path: Path) -> None:
    """At the notice a checkpoint is written and training goes on; when the node goes the learner starts elsewhere."""
    steps, rewards = 5 * STEPS, slow_until_gone(tmp_path / "notice", nap_s=0.5)
    run = tiny_run("notice", cluster=CLUSTER, rewards=rewards, scst={"steps": steps, "select_every": 10})
    said = struck(run, "learner", 300.0, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1")
    of = r"TOLD the node of rank 0 will be taken away in \d+ s; checkpoint of step \d+ written, training goes on"
    told = [line for line in said.splitlines() if line.startswith("TOLD")]
    assert len(told) == 1, "once for the notice"
    assert re.fullmatch(of, told[0]), told[0]
    assert "GONE" in said, "it was over before"
    assert_equal(run.path("scst", 0), one_process(run, tmp_path / "reference"), steps)
