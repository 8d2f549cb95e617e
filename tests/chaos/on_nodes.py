"""A cluster of three nodes on one machine, in a process of its own: a run without harm, and one that loses nodes.

The head has the driver, the Exchange and Ray Train's controller, the other two nodes everything else. Prints a line of
JSON for every node that is killed or added.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

NODE = {"num_cpus": 4, "object_store_memory": 100 * 2**20}
HEAD = {**NODE, "num_cpus": 0, "include_dashboard": False}


def harm(cluster: Any, workers: list[Any], folder: Path, *, kills: int, every: int, seed: int) -> None:
    """Kill nodes of the run in `folder`, and add new ones, in this process's main thread, as Ray wants it.

    Args:
        kills: how many; the first is that of the learner.
        every: steps between two of them.
    """
    from tests.chaos.monkey import logged

    draws = np.random.default_rng(seed)
    for number in range(kills):
        while logged(folder) < 2 + number * every:
            time.sleep(0.05)
        time.sleep(draws.uniform(0, 0.5))
        place = _of_the_learner(workers) if number == 0 else int(draws.integers(len(workers)))
        lost = workers.pop(place)
        print(json.dumps({"killed": _titles(lost), "step": logged(folder)}), flush=True)
        cluster.remove_node(lost, allow_graceful=False)
        time.sleep(3.0)  # what is left goes on, as far as there is room
        workers.append(cluster.add_node(**NODE))
        print(json.dumps({"added": len(workers)}), flush=True)


def _of_the_learner(workers: list[Any]) -> int:
    return max(range(len(workers)), key=lambda place: "ray::RayTrainWorker" in _titles(workers[place]))


def _titles(node: Any) -> dict[str, int]:
    """What runs on a node: its raylet's children, by title."""
    raylet = node.all_processes["raylet"][0].process.pid
    found: Counter[str] = Counter()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            title = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[0]
        except OSError:
            continue
        if parent == raylet and title.startswith("ray::"):
            found[title.split(".")[0].strip()] += 1
    return dict(found)


def _end_with_it(doing: Future[Any]) -> None:
    """A run that failed is waited for no longer."""
    if doing.exception() is not None:
        print(f"failed: {doing.exception()}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    from raycap.cluster.run import STAGES, run_recipe
    from raycap.cluster.stages import Run
    from raycap.recipe.load import validate

    whole, ravaged = (validate(recipe) for recipe in json.loads(sys.argv[1]))
    kills, every, seed = map(int, sys.argv[2:])
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        workers = [cluster.add_node(**NODE) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        run_recipe(whole)
        with ThreadPoolExecutor(1) as driver:
            doing = driver.submit(run_recipe, ravaged)
            doing.add_done_callback(_end_with_it)
            harm(cluster, workers, Run(ravaged, STAGES).path("scst", 0), kills=kills, every=every, seed=seed)
            doing.result()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
