"""A run on three nodes of one machine (`ray.cluster_utils.Cluster`): who ran where, and how fast. One JSON object.

    python benchmarks/nodes.py --storage /folder [--cpus 2] [key=value ...]

A head without CPUs, and two nodes for the learner's two ranks, two rollout workers and the reward, spread. The recipe
is `scenes`, cut short; values are added to it.

    nodes                    by node: its CPUs, and its processes at a step in the middle of SCST
    steps, steps_per_s       of SCST
    select_cider             before SCST and at its best
    idle                     mean idle shares of learner and actors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import Any

from raycap.train.journal import read_log

SHORT = [
    "data.scenes={num_train: 800, num_dev: 20, num_test: 100}", "clip.train.epochs=1", "mle.epochs=2",
    "scst.steps=40", "scst.select_every=20", "stages=[prepare,clip,features,mle,scst,evaluate]",
]  # fmt: skip
SPREAD = [
    "cluster.learner_workers=2", "cluster.learner_cpus=1", "cluster.learner_threads=1", "cluster.rollout_workers=2",
    "cluster.rollout_cpus=0.5", "rewards.cider.num_cpus=0.25", "cluster.placement=SPREAD",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=2, help="of each of the two nodes")
    parser.add_argument("values", nargs="*", help="recipe values")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray.cluster_utils import Cluster

    from raycap.cluster.run import STAGES, run_recipe
    from raycap.cluster.stages import Run
    from raycap.recipe.load import load_recipe

    given = ["name=nodes", f"storage={asked.storage.resolve()}", *SHORT, *SPREAD, *asked.values]
    recipe = load_recipe("scenes", given)
    memory = {"object_store_memory": 300 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=asked.cpus, **memory)
        ray.init(address=cluster.address, logging_level="ERROR")
        cluster.wait_for_nodes()
        folder = Run(recipe, STAGES).path("scst", recipe.run_seeds[0])
        seen: dict[str, Any] = {}
        looking = threading.Thread(target=look, args=(folder, recipe.scst.steps // 2, seen), daemon=True)
        looking.start()
        with redirect_stdout(sys.stderr):  # progress beside the figures
            run_recipe(recipe)
        looking.join(10)
        print(json.dumps({"nodes": list(seen.values()), **figures(folder)}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def look(folder: Path, step: int, seen: dict[str, Any]) -> None:
    """Once the run has logged a step, by node: its CPUs, and its actors' classes."""
    import ray

    log = folder / "log.jsonl"
    while not log.exists() or not any(record.get("step", -1) >= step for record in read_log(folder)):
        time.sleep(0.1)
    for node in ray.nodes():
        seen[node["NodeID"]] = {"cpus": node["Resources"].get("CPU", 0.0), "actors": Counter()}
    for actor in ray._private.state.actors().values():  # the state API asks the dashboard, which is not there
        if actor["State"] == "ALIVE":
            seen[actor["Address"]["NodeID"]]["actors"][actor["ActorClassName"]] += 1


def figures(folder: Path) -> dict[str, Any]:
    found = read_log(folder)
    steps = [record for record in found if "pg_loss" in record]
    ciders = [record["select_cider"] for record in found if "select_cider" in record]
    return {
        "steps": len(steps),
        "steps_per_s": (len(steps) - 1) / (steps[-1]["seconds"] - steps[0]["seconds"]),
        "select_cider": {"before": ciders[0], "best": max(ciders)},
        "idle": {who: fmean(record[f"idle/{who}"] for record in steps) for who in ("learner", "actors")},
    }


if __name__ == "__main__":
    main()
