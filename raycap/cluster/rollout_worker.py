"""The actor's half: lease a slice, generate its captions, have them scored, deliver them, the next one in hand already.

`RolloutWorker` is plain and needs no cluster; `LeaseLoop` walks one through the Exchange until the run is over, and
`RolloutActor` is the edge that builds both in a process of its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raycap.cluster.passing import storage_fails
from raycap.cluster.reaching import answer, away, reached, said
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
from raycap.train.turns import release_cache
from raycap.types import Generation, Lease, LeaseId, Rollouts, WeightsId, WeightSnapshot


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


_WEIGHTS_S, _WEIGHTS_GONE_S = 300.0, 0.5


class _NotOurs(Exception):
    """A lease was given to somebody else, or belongs to a start of the learner that is over."""


class LeaseLoop:
    """Walks a worker through the Exchange: lease, generate, have it scored, deliver.

    Args:
        name: unique among all workers of the run, restarts included; the Exchange knows the worker by it.
        pools: of the reward components.
        ahead: leases whose rewards may be out while the next is generated.
        rest: called where no lease is to be had.
    """

    worker: RolloutWorker

    def __init__(
        self, name: str, pools: RewardPools, ahead: int, rest: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        self.name, self.pools, self.ahead, self._rest = name, pools, ahead, rest
        self._over = threading.Event()
        self._lost: Exception | None = None
        self._error: RaycapError | None = None
        self._held: set[LeaseId] = set()
        self.seconds = {"wait": 0.0, "generate": 0.0, "reward": 0.0, "weights": 0.0}
        self.refused: RaycapError | None = None

    def run(self, exchange: Any) -> dict[str, Any]:
        """Work until the Exchange closes.

        While the rewards of some leases are out, the next one is generated. An error that no retry mends (a reward that
        fails, a model that cannot generate) ends the run through the Exchange. An Exchange that is away is waited for;
        what was generated for the one before is dropped by the new one.

        Returns:
            seconds by activity; error, the one that it ended the run with, or None.
        """
        self.exchange = exchange
        if self.refused is not None:
            self._end(self.refused)
        # a place for each lease whose rewards are out, and one for the lease that is generated
        room = threading.Semaphore(self.ahead + 1)
        with ThreadPoolExecutor(self.ahead + 1, thread_name_prefix="rewards") as errands:
            while not self._over.is_set():
                asked = time.perf_counter()
                room.acquire()
                handed_on = False
                with self._ending_with_what_goes_wrong(None):
                    if not self._over.is_set():
                        handed_on = self._next(asked, errands, room)
                if not handed_on:
                    room.release()
        if self._lost is not None:
            raise self._lost
        return {"seconds": dict(self.seconds), "error": self._error}

    def _next(self, asked: float, errands: Executor, room: threading.Semaphore) -> bool:
        """Lease a slice, generate it and hand it on; whether there was one."""
        import ray

        known = self.worker.weights_id
        given = reached(lambda: self.exchange.lease.remote(self.name, known, list(self._held)))
        if given.get("closed"):
            self._over.set()
            return False
        lease: Lease | None = given["lease"]
        marks = [asked, time.perf_counter()]
        self.seconds["wait"] += marks[1] - marks[0]
        if lease is None:
            self._rest()
            return False
        held = lease.id(given["weights_id"].incarnation)
        self._held.add(held)
        with self._ending_with_what_goes_wrong(held):
            if given["weights"] is not None:
                try:
                    self.worker.load(ray.get(given["weights"][0], timeout=_WEIGHTS_S))
                except ray.exceptions.ObjectLostError:  # with the learner that put them; the next one publishes anew
                    self._held.discard(held)
                    self.exchange.weights_lost.remote(self.name, held, given["weights_id"])
                    time.sleep(_WEIGHTS_GONE_S)
                    return False
                except ray.exceptions.GetTimeoutError as error:
                    self._give_back(held, f"its weights could not be had: {type(error).__name__}")
                    return False
            marks.append(time.perf_counter())
            generation = self.worker.generate(lease)
            marks.append(time.perf_counter())
            parts = (after - before for before, after in itertools.pairwise(marks[1:]))
            spent = dict(zip(("weights", "generate"), parts, strict=True))
            for name, value in spent.items():
                self.seconds[name] += value
            assert self.worker.weights_id is not None
            made = Rollouts(lease, self.worker.weights_id, generation, {}, spent)
            errands.submit(self._have_it_scored, made, room)
            return True
        return False

    def _have_it_scored(self, made: Rollouts, room: threading.Semaphore) -> None:
        """In a thread: rewards are awaited and the lease is delivered, as long as it is this worker's."""
        held = made.lease.id(made.weights_id.incarnation)

        def waiting(names: Sequence[str]) -> None:
            if not self._is_ours(held, f"waits for rewards: {', '.join(names)}"):
                raise _NotOurs

        try:
            with self._ending_with_what_goes_wrong(held), suppress(_NotOurs):
                waiting(self.pools.names)
                began = time.perf_counter()
                scores = self.pools.score(made.lease, made.generation, waiting)
                spent = {**made.seconds, "reward": time.perf_counter() - began}
                self.seconds["reward"] += spent["reward"]
                whole = replace(made, scores=scores, seconds=spent)
                reached(lambda: self.exchange.deliver.remote(self.name, whole))
        finally:
            self._held.discard(held)
            room.release()

    def _is_ours(self, held: LeaseId, doing: str) -> bool:
        """Whether the Exchange waits for that lease from here, once it has heard what becomes of it; one that is away
        is none the wiser."""
        import ray

        try:
            return bool(answer(lambda: self.exchange.doing.remote(self.name, held, doing)))
        except ray.exceptions.RayError as error:
            if not away(error):
                raise
            return True

    @contextmanager
    def _ending_with_what_goes_wrong(self, held: LeaseId | None) -> Iterator[None]:
        """What goes wrong inside ends the run with its message; what goes wrong with Ray ends this worker, and another
        takes its place and this lease."""
        import ray

        try:
            yield
        except RaycapError as error:  # an Exchange's own too: Ray gives it the type of its cause
            self._end(said(error))
        except ray.exceptions.RayTaskError as error:
            self._end(WorkFailed(f"a rollout worker failed: {error}"[:2000], key="worker", value=self.name))
        except ray.exceptions.RayError as error:
            self._lost = error
            self._over.set()
            if held is not None:
                self._give_back(held, str(error)[:200])
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with its message
            what = f"a rollout worker failed: {type(error).__name__}: {error}"
            self._end(WorkFailed(what, key="worker", value=self.name))

    def _give_back(self, held: LeaseId, why: str) -> None:
        self._held.discard(held)
        self.exchange.give_back.remote(self.name, held, why)  # unheard, it comes back when this worker asks again

    def _end(self, error: BaseException) -> None:
        """End the run. The crew tells it once more: an Exchange that is lost now would take it with it."""
        import ray

        assert isinstance(error, RaycapError)
        self._error = self._error or error
        self._over.set()
        with suppress(ray.exceptions.RayError):
            reached(lambda: self.exchange.fail.remote(error))


class RolloutActor(LeaseLoop):
    """A `RolloutWorker` in a process of its own.

    Args:
        captioner_folder, features_folder: on storage that the node sees.
        threads: torch threads; at lag 0 the same number in every process that generates.
        precision: torch's name of the type that it generates in.
        shares_gpu: by turns: memory is given back where no lease is to be had.
    """

    def __init__(
        self, name: str, captioner_folder: str, features_folder: str, recipe: SCSTRecipe, pools: RewardPools,
        *, max_length: int, seed: int, threads: int, device: str, precision: str = "float32", ahead: int = 2,
        shares_gpu: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(name, pools, ahead, *([partial(release_cache, device)] if shares_gpu else []))
        torch.set_num_threads(threads)
        try:
            # cast before it goes to the device, which then never holds it in float32
            captioner = cast_in(getattr(torch, precision), load_captioner(Path(captioner_folder))).to(on(device))
            features = FeatureStore.open(Path(features_folder))
        except RaycapError as error:
            if storage_fails(error):  # with this process, and the next one tries again
                raise
            self.refused = error  # raised here, it would look like the death of a worker, and others would follow
            return
        self.worker = RolloutWorker(captioner, features, recipe, max_length=max_length, seed=seed)
