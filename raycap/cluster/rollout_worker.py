"""The actor's half: lease a slice, generate its captions, have them scored, deliver them, the next one in hand already.

`RolloutWorker` is plain and needs no cluster; `RolloutActor` is its edge: it builds one and walks it through the
Exchange until the run is over.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raycap.cluster.reaching import reached
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.tasks import on
from raycap.data.features import FeatureStore
from raycap.errors import RaycapError, WorkFailed
from raycap.models.checkpoint import load_captioner
from raycap.models.precision import cast_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import load_snapshot
from raycap.recipe import SCSTRecipe
from raycap.train.scst import generate_lease
from raycap.types import Generation, Lease, Rollouts, WeightsId, WeightSnapshot


class RolloutWorker:
    """A copy of the policy that generates leases."""

    def __init__(
        self, captioner: PrefixCaptioner, features: FeatureStore, recipe: SCSTRecipe, *, max_length: int, seed: int
    ) -> None:
        self.captioner, self.features, self.recipe = captioner.eval(), features, recipe
        self.max_length, self.seed = max_length, seed
        self.weights_id: WeightsId | None = None

    def load(self, published: WeightSnapshot) -> None:
        load_snapshot(self.captioner, published)
        self.weights_id = published.weights_id

    def generate(self, lease: Lease) -> Generation:
        return generate_lease(
            self.captioner, self.features, lease, self.recipe, max_length=self.max_length, seed=self.seed
        )


_WEIGHTS_GONE_S = 0.5


class RolloutActor:
    """A `RolloutWorker` in a process of its own.

    Args:
        name: unique among all workers of the run, restarts included; the Exchange knows the worker by it.
        captioner_folder, features_folder: on storage that the node sees.
        pools: of the reward components.
        threads: torch threads; at lag 0 the same number in every process that generates.
        precision: torch's name of the type that it generates in.
        ahead: leases whose rewards may be out while it generates the next.
    """

    def __init__(
        self, name: str, captioner_folder: str, features_folder: str, recipe: SCSTRecipe, pools: RewardPools,
        *, max_length: int, seed: int, threads: int, device: str, precision: str = "float32", ahead: int = 2,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self.name, self.pools, self.ahead = name, pools, ahead
        self._over, self._lost = threading.Event(), None
        self.refused: RaycapError | None = None
        try:
            # cast before it goes to the device, which then never holds it in float32
            captioner = cast_in(getattr(torch, precision), load_captioner(Path(captioner_folder))).to(on(device))
            features = FeatureStore.open(Path(features_folder))
        except RaycapError as error:  # raised here, it would look like the death of a worker, and others would follow
            self.refused = error
            return
        self.worker = RolloutWorker(captioner, features, recipe, max_length=max_length, seed=seed)

    def run(self, exchange: Any) -> dict[str, float]:
        """Work until the Exchange closes; seconds by activity.

        While the rewards of some leases are out, the next one is generated. An error that no retry mends (a reward that
        fails, a model that cannot generate) ends the run through the Exchange. An Exchange that is away is waited for;
        what was generated for the one before is dropped by the new one.
        """
        seconds = {"wait": 0.0, "generate": 0.0, "reward": 0.0, "weights": 0.0}
        if self.refused is not None:
            reached(lambda: exchange.fail.remote(self.refused))
            return seconds
        room = threading.Semaphore(self.ahead)
        with ThreadPoolExecutor(self.ahead, thread_name_prefix="rewards") as errands:
            while not self._over.is_set():
                handed = True
                asked = time.perf_counter()
                room.acquire()  # before a lease is taken: it would only lie here
                answer = reached(lambda: exchange.lease.remote(self.name, self.worker.weights_id))
                seconds["wait"] += time.perf_counter() - asked
                if answer.get("closed"):
                    break
                if answer["lease"] is None:
                    room.release()
                    continue
                with self._failing_the_run(exchange):
                    handed = self._generate(exchange, answer, errands, room, seconds)
                if not handed:
                    room.release()
        if self._lost is not None:
            raise self._lost
        return seconds

    def _generate(
        self, exchange: Any, answer: dict[str, Any], errands: Executor, room: threading.Semaphore,
        seconds: dict[str, float],
    ) -> bool:  # fmt: skip
        """Generate a lease and hand it on; False when its weights are gone, and it was given back."""
        import ray

        marks, lease = [time.perf_counter()], answer["lease"]
        if answer["weights"] is not None:
            try:
                self.worker.load(ray.get(answer["weights"][0]))
            except ray.exceptions.ObjectLostError:  # with the learner that put them; the next one publishes anew
                reached(lambda: exchange.give_back.remote(self.name, lease))
                time.sleep(_WEIGHTS_GONE_S)
                return False
        marks.append(time.perf_counter())
        generation = self.worker.generate(lease)
        marks.append(time.perf_counter())
        parts = (after - before for before, after in itertools.pairwise(marks))
        spent = dict(zip(("weights", "generate"), parts, strict=True))
        for name, value in spent.items():
            seconds[name] += value
        assert self.worker.weights_id is not None
        made = Rollouts(lease, self.worker.weights_id, generation, {}, spent)
        errands.submit(self._have_it_scored, exchange, made, room, seconds)
        return True

    def _have_it_scored(
        self, exchange: Any, made: Rollouts, room: threading.Semaphore, seconds: dict[str, float]
    ) -> None:
        """In a thread: rewards are awaited and the lease is delivered."""
        lease = made.lease

        def waiting(names: Sequence[str]) -> None:
            what = f"waits for rewards: {', '.join(names)}"
            exchange.doing.remote(self.name, lease.step, lease.number, what)

        try:
            with self._failing_the_run(exchange):
                began = time.perf_counter()
                scores = self.pools.score(lease, made.generation, waiting)
                spent = {**made.seconds, "reward": time.perf_counter() - began}
                seconds["reward"] += spent["reward"]
                reached(lambda: exchange.deliver.remote(self.name, replace(made, scores=scores, seconds=spent)))
        finally:
            room.release()

    @contextmanager
    def _failing_the_run(self, exchange: Any) -> Iterator[None]:
        """What goes wrong inside ends the run with its message; what goes wrong with Ray ends this worker, and another
        takes its place."""
        import ray

        try:
            yield
        except RaycapError as error:
            self._end(exchange, error)
        except ray.exceptions.RayTaskError as error:
            self._end(exchange, WorkFailed(f"a rollout worker failed: {error}"[:2000], key="worker", value=self.name))
        except ray.exceptions.RayError as error:
            self._lost = error
            self._over.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with its message
            what = f"a rollout worker failed: {type(error).__name__}: {error}"
            self._end(exchange, WorkFailed(what, key="worker", value=self.name))

    def _end(self, exchange: Any, error: RaycapError) -> None:
        self._over.set()
        reached(lambda: exchange.fail.remote(error))
