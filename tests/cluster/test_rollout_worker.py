"""A rollout actor that cannot start says why, and nobody takes it for dead; what is another's by now is let go."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from raycap.cluster import rollout_worker
from raycap.cluster.exchange import Exchange
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.rollout_worker import LeaseLoop, RolloutActor
from raycap.errors import CheckpointError
from raycap.recipe import SCSTRecipe
from raycap.train.prompts import PromptSchedule
from raycap.types import ComponentScores, Generation, Lease, WeightsId


@pytest.mark.ray
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


def actor_of(folder: Path) -> RolloutActor:
    return RolloutActor("rollout-0", str(folder), str(folder), SCSTRecipe(), RewardPools({}), max_length=5, seed=0,
                        threads=1, device="cpu")  # fmt: skip


def test_a_storage_that_does_not_answer_ends_the_process_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crew starts another one, which may find it well again."""
    stale = OSError(errno.ESTALE, "Stale file handle")

    def fail(folder: Path) -> None:
        raise raised

    monkeypatch.setattr(rollout_worker, "load_captioner", fail)
    behind = CheckpointError("cannot be read", key="checkpoint")
    behind.__cause__ = stale
    for raised in (stale, behind):
        with pytest.raises(type(raised)):
            actor_of(tmp_path)
    raised = CheckpointError("holds no captioner", key="checkpoint")
    assert actor_of(tmp_path).refused is raised


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


@pytest.mark.ray
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
    assert [r.lease.number for r in taken.rollouts] == list(range(8))
    ray_session.get(exchange.close.remote())
    working.join(timeout=60)
    assert not working.is_alive()
    ray_session.kill(exchange)


class Local:
    """An Exchange in this process, called as an actor is."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.gone = exchange, False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._called(name, given))

    def _called(self, name: str, given: Any) -> Any:
        if self.gone and name == "doing":
            raise ray.exceptions.ActorUnavailableError("away", None)
        return asyncio.run_coroutine_threadsafe(getattr(self.exchange, name)(*given), self._loop)

    def ask(self, name: str, *given: Any) -> Any:
        return self._called(name, given).result(60)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    for name in ("reached", "answer"):
        monkeypatch.setattr(rollout_worker, name, lambda call: call().result(60))
    monkeypatch.setattr(ray, "get", lambda put, timeout: put)
    schedule = PromptSchedule(["a", "b"], batch_size=2, lease_size=1, seed=0)
    made = Local(Exchange(schedule, total_steps=1, max_policy_lag=0, lease_timeout_s=60.0, quarantine_after=3))
    yield made
    made.end()


def announced(local: Local, incarnation: int) -> None:
    local.ask("reset", incarnation, 0)
    local.ask("publish", WeightsId(incarnation, 0), [WeightsId(incarnation, 0)])


class Queue:
    """Pools whose rewards come when they are let, and which say meanwhile who is waited for."""

    names = ("clip",)

    def __init__(self) -> None:
        self.let, self.left = threading.Event(), list[Lease]()

    def score(self, lease: Lease, generation: Generation, waiting: Callable[..., None]) -> dict[str, ComponentScores]:
        try:
            while not self.let.wait(0.02):
                waiting(["clip"])
        except BaseException:
            self.left.append(lease)
            raise
        return {"clip": ComponentScores(np.zeros((1, 1), np.float32), np.zeros(1, np.float32))}


class Working:
    """A worker at work in a thread."""

    def __init__(self, local: Local, pools: Any) -> None:
        self.loop = LeaseLoop("w", pools, 1)
        self.loop.worker = self.worker = Quick()  # type: ignore[assignment]
        self._thread = threading.Thread(target=self.loop.run, args=(local,), daemon=True)
        self._thread.start()

    def over(self) -> bool:
        self._thread.join(60)
        return not self._thread.is_alive()


def comes(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def test_what_is_another_s_by_now_is_let_go_of(local: Local) -> None:
    """The learner starts again while both of a worker's places wait for rewards that do not come: it begins anew, and
    holds leases of the same numbers and attempts again."""
    announced(local, 0)
    pools = Queue()
    working = Working(local, pools)
    assert comes(lambda: len(working.worker.generated) == 2)
    first = set(working.loop._held)
    announced(local, 1)
    assert comes(lambda: len(working.worker.generated) == 4)
    assert comes(lambda: len(pools.left) == 2), "nobody waits for the rewards of those any more"
    assert {held._replace(incarnation=1) for held in first} == working.loop._held
    pools.let.set()
    part = local.ask("take", 0, 0, 1, 60.0, 1)
    assert [r.lease.number for r in part.rollouts] == [0, 1]
    local.ask("close")
    assert working.over()
    assert working.loop._held == set()
    assert local.ask("status")["counts"]["delivered"] == 2
    assert working.loop._error is None


def test_an_exchange_that_is_away_says_nothing_of_a_lease(local: Local) -> None:
    announced(local, 0)
    pools = Queue()
    working = Working(local, pools)
    assert comes(lambda: len(working.worker.generated) == 2)
    local.gone = True
    time.sleep(0.2)
    assert pools.left == []
    pools.let.set()
    assert len(local.ask("take", 0, 0, 1, 60.0, 0).rollouts) == 2
    local.ask("close")
    assert working.over()
