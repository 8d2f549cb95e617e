"""A rollout actor that cannot start says why, and nobody takes it for dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster.exchange import Exchange
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.rollout_worker import RolloutActor
from raycap.errors import CheckpointError
from raycap.recipe import SCSTRecipe
from raycap.train.prompts import PromptSchedule
from raycap.types import ComponentScores, Generation, Lease, WeightsId

pytestmark = pytest.mark.ray


def test_a_checkpoint_that_is_not_there_ends_the_run_with_its_name(ray_session: Any, tmp_path: Path) -> None:
    schedule = PromptSchedule(["a", "b"], batch_size=2, lease_size=2, seed=0)
    exchange = ray_session.remote(Exchange).options(num_cpus=0, max_concurrency=10).remote(
        schedule, total_steps=2, max_policy_lag=0, lease_timeout_s=60.0, quarantine_after=3
    )  # fmt: skip
    folder = str(tmp_path / "mle" / "best")
    worker = RolloutActor("rollout-0", folder, str(tmp_path), SCSTRecipe(), RewardPools({}), max_length=5, seed=0,
                          threads=1, device="cpu")  # fmt: skip
    worker.run(exchange)
    with pytest.raises(ray_session.exceptions.RayTaskError) as refused:
        ray_session.get(exchange.take.remote(0, 0, 1, 5.0))
    error = refused.value.cause
    assert isinstance(error, CheckpointError)
    assert "holds no captioner" in str(error)
    assert error.value == folder
    ray_session.kill(exchange)


def test_what_is_let_go_is_that_attempt_and_no_other(tmp_path: Path) -> None:
    """An errand of the learner's start before ends while the worker holds the lease of the same number again."""
    folder = str(tmp_path / "nowhere")
    worker = RolloutActor("rollout-0", folder, folder, SCSTRecipe(), RewardPools({}), max_length=5, seed=0, threads=1,
                          device="cpu")  # fmt: skip
    before, now = Lease(3, 1, ()), Lease(3, 1, ())
    worker._held[3, 1] = now
    worker._let_go(before)
    assert worker._held == {(3, 1): now}
    worker._let_go(now)
    assert worker._held == {}


class Held:
    """Pools that score nothing before they are let."""

    names = ("mine",)

    def __init__(self) -> None:
        self.let, self.out = threading.Event(), 0

    def score(self, lease: Lease, generation: Generation, waiting: Callable[..., None]) -> dict[str, ComponentScores]:
        self.out += 1
        self.let.wait(60)
        return {"mine": ComponentScores(np.zeros((1, 1), np.float32), np.zeros(1, np.float32))}


class Quick:
    """Generates nothing, at once."""

    weights_id = None

    def __init__(self) -> None:
        self.generated: list[int] = []

    def load(self, published: Any) -> None:
        self.weights_id = published

    def generate(self, lease: Lease) -> Generation:
        self.generated.append(lease.number)
        return Generation(np.zeros((1, 1), np.int64), np.ones(1, np.int64), np.zeros((1, 1), np.float32),
                          np.ones(1, bool), ("a",), ("a",), np.ones(1, bool), 1)  # fmt: skip


def test_no_more_rewards_are_out_than_the_recipe_lets(ray_session: Any, tmp_path: Path) -> None:
    schedule = PromptSchedule([f"i{n}" for n in range(8)], batch_size=8, lease_size=1, seed=0)
    exchange = ray_session.remote(Exchange).options(num_cpus=0, max_concurrency=10).remote(
        schedule, total_steps=1, max_policy_lag=0, lease_timeout_s=60.0, quarantine_after=3
    )  # fmt: skip
    ray_session.get(exchange.reset.remote(0, 0))
    ray_session.get(exchange.publish.remote(WeightsId(0, 0), [ray_session.put(WeightsId(0, 0))]))
    pools, quick, folder = Held(), Quick(), str(tmp_path / "nowhere")
    actor = RolloutActor("rollout-0", folder, folder, SCSTRecipe(), pools, max_length=5, seed=0, threads=1,
                         device="cpu", ahead=2)  # fmt: skip
    actor.refused, actor.worker = None, quick
    working = threading.Thread(target=actor.run, args=(exchange,), daemon=True)
    working.start()
    deadline = time.monotonic() + 60
    while pools.out < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)  # in which nothing more may come
    assert quick.generated == [0, 1, 2], "two whose rewards are out, and one more that is made meanwhile"
    pools.let.set()
    taken = ray_session.get(exchange.take.remote(0, 0, 1, 60.0))
    assert [r.lease.number for r in taken] == list(range(8))
    ray_session.get(exchange.close.remote())
    working.join(timeout=60)
    assert not working.is_alive()
    ray_session.kill(exchange)
