"""What bounded asynchrony is worth, how rollout workers add up, and what publishing weights costs. One JSON object.

    python benchmarks/async.py [--steps 30] [--unit 0.4] [--publish-mb 500] [--workers 8]

Real Exchange, rollout actors, reward pools and Ray; the work itself is slept, as if it were done on GPUs, so that two
cores suffice. Three shapes of a step, each at lag 0, 1 and 4: `balanced` (generation and learning take as long as each
other), `slow_reward` (rewards take twice as long as either), `slow_generation` (generation does).

    <shape>.lag1_over_lag0, .lag4_over_lag0   steps a second over those at lag 0
    <shape>.learner_idle_share                of the learner's time, at lag 1 (and `_by_lag`)
    scaling_8                                 leases a second of 8 workers bound by generation over those of one
    publish_gb_per_s                          weights of `--publish-mb` from the learner's parameters into those of all
                                              workers of this node: bytes that must be copied over seconds
    memcpy_gb_per_s                           bytes copied a second by all cores, each into an array of its own

The copies that publishing cannot avoid: parameters into the flat buffer, the buffer into the object store, and from the
store (which all workers map into their memory) into each worker's parameters: workers + 2 times the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from raycap.cluster.exchange import Exchange
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.rollout_worker import LeaseLoop
from raycap.models.weights import load_snapshot, snapshot
from raycap.train.prompts import PromptSchedule
from raycap.types import ComponentScores, Generation, Lease, WeightsId, WeightSnapshot

IMAGES, LEASES, SAMPLES = 32, 8, 2
RAY = {"address": "local", "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Shape:
    """Seconds that a whole step's work takes: generation by all workers together, rewards by their pool, learning."""

    generate: float
    reward: float
    learn: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--unit", type=float, default=0.4, help="seconds that the parts of a balanced step take")
    parser.add_argument("--publish-mb", type=int, default=500)
    parser.add_argument("--workers", type=int, default=8)
    asked = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    unit = asked.unit
    shapes = {
        "balanced": Shape(unit, 0.02 * unit, unit),
        "slow_reward": Shape(unit, 2 * unit, unit),
        "slow_generation": Shape(2 * unit, 0.02 * unit, unit),
    }
    report: dict[str, Any] = {"steps": asked.steps, "unit_s": unit}
    ray.init(num_cpus=4, object_store_memory=max(200, 2 * asked.publish_mb) << 20, **RAY)
    try:
        for name, shape in shapes.items():
            report[name] = compared(shape, asked.steps)
        report["scaling_8"] = scaled(asked.workers, unit)
        report |= published(asked.publish_mb, asked.workers)
    finally:
        ray.shutdown()
    report["memcpy_gb_per_s"] = copied()
    print(json.dumps(report))


class Sleeper:
    """A worker whose generation is slept."""

    def __init__(self, seconds_a_lease: float) -> None:
        self.seconds, self.weights_id = seconds_a_lease, None

    def load(self, published: WeightSnapshot) -> None:
        self.weights_id = published.weights_id

    def generate(self, lease: Lease) -> Generation:
        time.sleep(self.seconds)
        rows = len(lease.prompts) * SAMPLES
        return Generation(
            tokens=np.zeros((rows, 4), np.int64), lengths=np.full(rows, 4), finished=np.ones(rows, bool),
            behavior_logprobs=np.zeros((rows, 4), np.float32), captions=("a dog",) * rows, num_samples=SAMPLES,
            greedy_captions=("a dog",) * len(lease.prompts), greedy_finished=np.ones(len(lease.prompts), bool),
        )  # fmt: skip


class SleepyActor(LeaseLoop):
    """The real loop around a `Sleeper`."""

    def __init__(self, name: str, pools: RewardPools, seconds_a_lease: float) -> None:
        super().__init__(name, pools, ahead=2)
        self.worker = Sleeper(seconds_a_lease)  # type: ignore[assignment]


class SleepyReward:
    def __init__(self, seconds_a_lease: float) -> None:
        self.seconds = seconds_a_lease

    def score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        time.sleep(self.seconds)
        count = len(image_ids)
        return ComponentScores(np.zeros((count, SAMPLES), np.float32), np.zeros(count, np.float32), self.seconds)


class Crew:
    """An Exchange, rollout actors and one reward actor, at work until the block ends."""

    def __init__(self, *, steps: int, lag: int, workers: int, generate: float, reward: float) -> None:
        schedule = PromptSchedule(
            [f"i{n}" for n in range(1000)], batch_size=IMAGES, lease_size=IMAGES // LEASES, seed=0
        )
        self.exchange = ray.remote(Exchange).options(num_cpus=0, max_concurrency=1000).remote(
            schedule, total_steps=steps, max_policy_lag=lag, lease_timeout_s=600.0, quarantine_after=3
        )  # fmt: skip
        rewards = [ray.remote(SleepyReward).options(num_cpus=0).remote(reward)]
        pools = RewardPools({"slept": rewards})
        kind = ray.remote(SleepyActor).options(num_cpus=0)
        self.actors = [*rewards, *(kind.remote(f"w{n}", pools, generate) for n in range(workers))]
        self.at_work = [actor.run.remote(self.exchange) for actor in self.actors[1:]]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        ray.get(self.exchange.close.remote())
        ray.wait(self.at_work, num_returns=len(self.at_work), timeout=30)
        for actor in [self.exchange, *self.actors]:
            ray.kill(actor)

    def publish(self, version: int) -> None:
        empty = WeightSnapshot(WeightsId(0, version), (), np.zeros(0, np.uint8))
        ray.get(self.exchange.publish.remote(WeightsId(0, version), [ray.put(empty)]))


def learned(shape: Shape, lag: int, steps: int, workers: int = 2) -> tuple[float, float]:
    """Steps a second, and the share of its time that the learner waited."""
    with Crew(steps=steps + 3, lag=lag, workers=workers, generate=shape.generate * workers / LEASES,
              reward=shape.reward / LEASES) as crew:  # fmt: skip
        ray.get(crew.exchange.reset.remote(0, 0))
        crew.publish(0)
        waited, started = 0.0, 0.0
        for step in range(steps + 3):
            if step == 3:  # actors have started, the pipeline is full
                waited, started = 0.0, time.perf_counter()
            asked = time.perf_counter()
            ray.get(crew.exchange.take.remote(step, 0, 1, 60.0, 0))
            waited += time.perf_counter() - asked
            time.sleep(shape.learn)
            crew.publish(step + 1)
        whole = time.perf_counter() - started
    return steps / whole, waited / whole


def compared(shape: Shape, steps: int) -> dict[str, Any]:
    found = {lag: learned(shape, lag, steps) for lag in (0, 1, 4)}
    return {
        "lag1_over_lag0": found[1][0] / found[0][0],
        "lag4_over_lag0": found[4][0] / found[0][0],
        "learner_idle_share": found[1][1],
        "learner_idle_share_by_lag": {f"lag{lag}": idle for lag, (_, idle) in found.items()},
        "steps_per_s": {f"lag{lag}": rate for lag, (rate, _) in found.items()},
    }


def scaled(workers: int, unit: float) -> float:
    """Leases a second of many workers that do nothing but generate, over those of one."""
    rates = {}
    for count in (1, workers):
        steps = 2 * count
        with Crew(steps=steps + 4, lag=64, workers=count, generate=unit, reward=0.0) as crew:
            ray.get(crew.exchange.reset.remote(0, 0))
            crew.publish(0)
            ray.get(crew.exchange.take.remote(0, 0, 1, 60.0, 0))  # all have started by then
            ray.get(crew.exchange.take.remote(1, 0, 1, 60.0, 0))
            started = time.perf_counter()
            for step in range(2, steps + 2):
                ray.get(crew.exchange.take.remote(step, 0, 1, 60.0, 0))
            rates[count] = steps * LEASES / (time.perf_counter() - started)
    return rates[workers] / rates[1]


class Parameters(torch.nn.Module):
    """Weights of so many megabytes, in pieces as a model's are."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.pieces = torch.nn.ParameterList(torch.zeros(1 << 20) for _ in range(megabytes // 4))


class Receiver:
    def __init__(self, megabytes: int) -> None:
        torch.set_num_threads(1)
        self.module = Parameters(megabytes)
        load_snapshot(self.module, snapshot(self.module, WeightsId(0, 0)))  # memory that has been touched

    def ready(self) -> None:
        """It is there."""

    def load(self, published: list[Any]) -> float:
        load_snapshot(self.module, ray.get(published[0]))
        return float(self.module.pieces[-1][-1])


def published(megabytes: int, workers: int, rounds: int = 5) -> dict[str, float]:
    kind = ray.remote(Receiver).options(num_cpus=0)
    receivers = [kind.remote(megabytes) for _ in range(workers)]
    ray.get([receiver.ready.remote() for receiver in receivers])
    module, seconds, made = Parameters(megabytes), list[float](), None
    for number in range(rounds):
        with torch.no_grad():
            module.pieces[-1].fill_(number)
        started = time.perf_counter()
        made = snapshot(module, WeightsId(0, number), None if made is None else made.buffer)
        weights = ray.put(made)
        got = ray.get([receiver.load.remote([weights]) for receiver in receivers])
        seconds.append(time.perf_counter() - started)
        assert got == [float(number)] * workers
        del weights
    for receiver in receivers:
        ray.kill(receiver)
    total = (workers + 2) * (megabytes // 4) * 4 * (1 << 20)
    return {"publish_gb_per_s": total / float(np.median(seconds)) / 1e9, "publish_s": float(np.median(seconds))}


def copied(megabytes: int = 500, rounds: int = 5) -> float:
    """GB/s of plain copies by all cores at a time."""
    threads = os.cpu_count() or 1
    pairs = [(np.ones(megabytes << 17), np.ones(megabytes << 17)) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            started = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            seconds.append(time.perf_counter() - started)
    return threads * (megabytes << 20) / float(np.median(seconds)) / 1e9


if __name__ == "__main__":
    main()
