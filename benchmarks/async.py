"""What bounded asynchrony is worth, how rollout workers add up, and what publishing weights costs. One JSON object.

    python benchmarks/async.py [--steps 30] [--unit 0.4] [--publish-mb 500] [--workers 8]

Real Exchange, rollout actors, reward pools and Ray, and the learner's own taking and publishing; the work itself is
slept, as if it were done on GPUs, so that two cores suffice. Three shapes of a step, each at lag 0, 1 and 4: `balanced`
(generation and learning take as long as each other), `slow_reward` (rewards take twice as long as either),
`slow_generation` (generation does). At every step it is checked that the learner got each lease of it once, from
weights that are no older than the lag allows.

    <shape>.lag1_over_lag0, .lag4_over_lag0   steps a second over those at lag 0
    <shape>.learner_idle_share                mean of the log's idle/learner at lag 1 (and `_by_lag`)
    scaling_8                                 leases a second of 8 workers bound by generation over those of one (of N:
                                              `scaling_N`)
    publish_gb_per_s                          weights of `--publish-mb` from the learner's parameters into those of all
                                              workers of this node: bytes that must be copied over seconds
    memcpy_gb_per_s                           bytes copied a second by all cores that this process may use, each from an
                                              array of its own into another (1 GB of arrays in all)
    publish_over_memcpy                       of one over the other, measured in turn: the median of the rounds' ratios

The copies that publishing cannot avoid: parameters into the flat buffer, the buffer into the object store, and from the
store (which all workers map into their memory) into each worker's parameters: workers + 2 times the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch

from raycap.cluster.exchange import Exchange
from raycap.cluster.exchange_link import ExchangeLink
from raycap.cluster.reaching import reached
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.rollout_worker import LeaseLoop
from raycap.cluster.step_seconds import step_seconds
from raycap.models.weights import load_snapshot, snapshot
from raycap.recipe import ClusterRecipe, RewardRecipe, SCSTRecipe
from raycap.train.group import Alone
from raycap.train.prompts import PromptSchedule
from raycap.train.stopwatch import Stopwatch
from raycap.types import ComponentScores, Generation, Lease, Rollouts, WeightsId, WeightSnapshot

IMAGES, LEASES, SAMPLES = 32, 8, 2
SCHEDULE = PromptSchedule([f"i{n}" for n in range(1000)], batch_size=IMAGES, lease_size=IMAGES // LEASES, seed=0)
WARM = 3
"""Steps before the clock is started: the pipeline is full."""
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
        report[f"scaling_{asked.workers}"] = scaled(asked.workers, unit)
        report |= published(asked.publish_mb, asked.workers)
    finally:
        ray.shutdown()
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

    def ready(self) -> None:
        """It is there."""


class SleepyReward:
    def __init__(self, seconds_a_lease: float) -> None:
        self.seconds = seconds_a_lease

    def score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        time.sleep(self.seconds)
        count = len(image_ids)
        return ComponentScores(np.zeros((count, SAMPLES), np.float32), np.zeros(count, np.float32), self.seconds)


class Crew:
    """An Exchange, rollout actors and a reward actor, at work until the block ends; all are there before any works."""

    def __init__(self, *, steps: int, lag: int, workers: int, generate: float, reward: float) -> None:
        self.exchange = ray.remote(Exchange).options(num_cpus=0, max_concurrency=1000).remote(
            SCHEDULE, total_steps=steps, max_policy_lag=lag, lease_timeout_s=600.0, quarantine_after=3
        )  # fmt: skip
        rewards = [ray.remote(SleepyReward).options(num_cpus=0).remote(reward)]
        pools = RewardPools({"slept": rewards})
        kind = ray.remote(SleepyActor).options(num_cpus=0)
        workers_made = [kind.remote(f"w{n}", pools, generate) for n in range(workers)]
        ray.get([worker.ready.remote() for worker in workers_made])
        self.actors = [*rewards, *workers_made]
        self.at_work = [worker.run.remote(self.exchange) for worker in workers_made]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        ray.get(self.exchange.close.remote())
        ray.wait(self.at_work, num_returns=len(self.at_work), timeout=30)
        for actor in [self.exchange, *self.actors]:
            ray.kill(actor)


class SleepyLearner:
    """What the learner's loop asks of a learner; an update is slept, and there is nothing in the weights."""

    def __init__(self, seconds_a_step: float) -> None:
        self.seconds, self.step, self.incarnation = seconds_a_step, 0, 0
        self.published: WeightSnapshot | None = None

    def publish(self, into: WeightSnapshot | None) -> WeightSnapshot:
        return WeightSnapshot(WeightsId(self.incarnation, self.step), (), np.zeros(0, np.uint8))

    def update(self, rollouts: Sequence[Rollouts]) -> None:
        time.sleep(self.seconds)
        self.step += 1


def check(rollouts: Sequence[Rollouts], step: int, lag: int) -> None:
    """What the learner got for a step: each of its leases once, in order, scored, and from weights fresh enough."""
    leases = [rollout.lease for rollout in rollouts]
    assert [(lease.step, lease.number) for lease in leases] == [(step, number) for number in range(LEASES)], leases
    assert [lease.prompts for lease in leases] == [lease.prompts for lease in SCHEDULE.leases(step)], step
    for rollout in rollouts:
        behind = step - rollout.weights_id.policy_version
        assert rollout.weights_id.incarnation == 0, rollout.weights_id
        assert 0 <= behind <= lag, f"step {step}: {behind} versions behind at lag {lag}"
        assert rollout.scores.keys() == {"slept"}, rollout.scores


def learned(
    shape: Shape, lag: int, steps: int, workers: int = 2, crew_of: Callable[..., Any] = Crew
) -> tuple[float, float]:
    """Steps a second, and the share of its time that the learner waited: the loop of `raycap.cluster.learner_loop`
    without a captioner."""
    recipe: Any = SimpleNamespace(
        scst=SCSTRecipe(max_policy_lag=lag), cluster=ClusterRecipe(rollout_workers=workers),
        rewards={"slept": RewardRecipe()},
    )  # fmt: skip
    learner: Any = SleepyLearner(shape.learn)
    with crew_of(steps=steps + WARM, lag=lag, workers=workers, generate=shape.generate * workers / LEASES,
                 reward=shape.reward / LEASES) as crew, TemporaryDirectory() as folder:  # fmt: skip
        link = ExchangeLink(crew.exchange, learner, Alone(), Path(folder), stall_timeout_s=60.0)
        link.open()
        watch, health = Stopwatch(), list[dict[str, float]]()
        while learner.step < steps + WARM:
            if learner.step == WARM:
                started = time.perf_counter()
            with watch.of("wait"):
                rollouts = link.take(lambda: None).rollouts
            check(rollouts, learner.step, lag)
            with watch.of("learn"):
                learner.update(rollouts)
            with watch.of("publish"):
                link.publish()
            health.append(step_seconds(rollouts, learner.step - 1, watch.lap(), recipe, Alone()))
            assert 0 <= health[-1]["policy_lag"] <= lag, health[-1]
        whole = time.perf_counter() - started
    return steps / whole, fmean(each["idle/learner"] for each in health[WARM:])


def compared(shape: Shape, steps: int) -> dict[str, Any]:
    found = {lag: learned(shape, lag, steps) for lag in (0, 1, 4)}
    return {
        "lag1_over_lag0": found[1][0] / found[0][0],
        "lag4_over_lag0": found[4][0] / found[0][0],
        "learner_idle_share": found[1][1],
        "learner_idle_share_by_lag": {f"lag{lag}": idle for lag, (_, idle) in found.items()},
        "steps_per_s": {f"lag{lag}": rate for lag, (rate, _) in found.items()},
    }


def scaled(workers: int, unit: float, crew_of: Callable[..., Any] = Crew) -> float:
    """Leases a second of many workers that do nothing but generate, over those of one."""
    rates = {}
    for count in (1, workers):
        steps, lag = 2 * count, 64
        with crew_of(steps=steps + 4, lag=lag, workers=count, generate=unit, reward=0.0) as crew:
            learner: Any = SleepyLearner(0.0)
            with TemporaryDirectory() as folder:
                ExchangeLink(crew.exchange, learner, Alone(), Path(folder), stall_timeout_s=60.0).open()
            for step in range(steps + 2):
                if step == 2:  # all are in the middle of it
                    started = time.perf_counter()
                part = reached(lambda crew=crew, step=step: crew.exchange.take.remote(step, 0, 1, 60.0, 0))
                check(part.rollouts, step, lag)
            rates[count] = steps * LEASES / (time.perf_counter() - started)
    return rates[workers] / rates[1]


class Parameters(torch.nn.Module):
    """Weights of so many megabytes, in pieces as a model's are."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.pieces = torch.nn.ParameterList(torch.zeros(1 << 20) for _ in range(megabytes // 4))


def fill(module: Parameters, number: int) -> None:
    """Every piece with a number of its own, another one each round."""
    with torch.no_grad():
        for place, piece in enumerate(module.pieces):
            piece.fill_(1000 * number + place)


def holds(module: Parameters, number: int) -> bool:
    """Whether it was filled with that: first, middle and last value of every piece."""
    return all(
        [float(piece.detach()[at]) for at in (0, len(piece) // 2, -1)] == [1000 * number + place] * 3
        for place, piece in enumerate(module.pieces)
    )


class Receiver:
    def __init__(self, megabytes: int) -> None:
        torch.set_num_threads(1)
        self.module = Parameters(megabytes)
        load_snapshot(self.module, snapshot(self.module, WeightsId(0, 0)))  # memory that has been touched

    def ready(self) -> None:
        """It is there."""

    def load(self, published: list[Any]) -> None:
        load_snapshot(self.module, ray.get(published[0]))

    def holds(self, number: int) -> bool:
        return holds(self.module, number)


def published(megabytes: int, workers: int, rounds: int = 5) -> dict[str, float]:
    """Publishing and plain copying in turn, so that what is compared is of the same moments."""
    kind = ray.remote(Receiver).options(num_cpus=0)
    receivers = [kind.remote(megabytes) for _ in range(workers)]
    ray.get([receiver.ready.remote() for receiver in receivers])
    module, made, seconds, copies = Parameters(megabytes), None, list[float](), list[float]()
    total = (workers + 2) * (megabytes // 4) * 4 * (1 << 20)
    with Copier() as copier:
        for number in range(1, rounds + 1):
            fill(module, number)
            copies.append(copier.gb_per_s())
            started = time.perf_counter()
            made = snapshot(module, WeightsId(0, number), None if made is None else made.buffer)
            weights = ray.put(made)
            ray.get([receiver.load.remote([weights]) for receiver in receivers])
            seconds.append(time.perf_counter() - started)
            assert all(ray.get([receiver.holds.remote(number) for receiver in receivers])), number
            del weights
    for receiver in receivers:
        ray.kill(receiver)
    return compared_with_copies([total / each / 1e9 for each in seconds], copies) | {"publish_s": median(seconds)}


def compared_with_copies(publishing: Sequence[float], copying: Sequence[float]) -> dict[str, float]:
    """Of rounds in turn, GB/s each."""
    return {
        "publish_gb_per_s": median(publishing),
        "memcpy_gb_per_s": median(copying),
        "publish_over_memcpy": median(one / other for one, other in zip(publishing, copying, strict=True)),
    }


class Copier:
    """Plain copies by all cores that this process may use; together they read `megabytes`, and write as many."""

    def __init__(self, megabytes: int = 500) -> None:
        self.threads = len(os.sched_getaffinity(0))
        words = (megabytes << 17) // self.threads
        self.pairs = [(np.ones(words), np.ones(words)) for _ in range(self.threads)]
        self.pool = ThreadPoolExecutor(self.threads)

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.shutdown()

    def gb_per_s(self) -> float:
        started = time.perf_counter()
        list(self.pool.map(lambda pair: np.copyto(pair[1], pair[0]), self.pairs))
        return sum(pair[0].nbytes for pair in self.pairs) / (time.perf_counter() - started) / 1e9


if __name__ == "__main__":
    main()
