"""Reward components in pools of actors: each component its own pool with its own resources, all asked at once."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raycap.errors import RaycapError, RewardStuck, WorkFailed
from raycap.rewards.context import ContextSpec
from raycap.rewards.contract import build_component, score_generation
from raycap.types import ComponentScores, Generation, Lease


class RewardWorker:
    """One component in a process of its own.

    Args:
        timeout_s: for one batch; a component that takes longer is stuck, its process with it, and ends.
        shares_gpu: by turns: memory is given back after each batch.
    """

    def __init__(
        self, name: str, spec: ContextSpec, options: Mapping[str, Any], source: str, threads: int,
        timeout_s: float = math.inf, shares_gpu: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.refused, self.timeout_s = name, None, timeout_s
        self._shared_device = spec.device if shares_gpu else ""
        try:
            self.component = build_component(name, spec.open(), options, source)
        except RaycapError as error:  # raised here, it would reach callers as the death of an actor
            self.refused = error
        # in one thread beside Ray's own, which waits for it no longer than `timeout_s`
        self._scorer = ThreadPoolExecutor(1, initializer=_take_threads, initargs=(threads,))

    def ready(self) -> str:
        """The component's signature, once it is built; raises what it refused."""
        if self.refused is not None:
            raise self.refused
        return str(getattr(self.component, "signature", self.name))

    def score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        """Scores of a batch.

        Raises:
            RewardError: the component broke the contract.
            RewardStuck: it takes longer than `timeout_s`; this process ends right after.
        """
        self.ready()
        scored = self._scorer.submit(self._score, image_ids, generation)
        try:
            return scored.result(None if math.isinf(self.timeout_s) else self.timeout_s)
        except TimeoutError:
            if scored.done():  # its own
                raise
            threading.Timer(_LAST_WORDS_S, os._exit, (1,)).start()
            said, image = next(iter(generation.captions), ""), next(iter(image_ids), "")
            raise RewardStuck(f"took longer than {self.timeout_s:g} s for a batch that begins with {said!r} of "
                              f"{image}", key=f"rewards.{self.name}",
                              remedy="raise cluster.reward_timeout_s where that is no fault",
                              ) from None  # fmt: skip

    def _score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        try:
            return score_generation(self.name, self.component, image_ids, generation)
        finally:
            if self._shared_device == "cuda":  # CIDEr-D and its like need no torch
                from raycap.train.turns import release_cache

                release_cache(self._shared_device)


_LAST_WORDS_S = 1.0


def _take_threads(threads: int) -> None:
    if "torch" in sys.modules:  # CIDEr-D and its like need none; importing it takes seconds
        sys.modules["torch"].set_num_threads(threads)  # of this thread


PATIENCE_S = 60.0
"""After so long without an actor it is said what is waited for, and again each time."""


def _patiently(name: str, ref: Any) -> Any:
    """What an actor answers; one that finds no room in the cluster waits for it, and it is said that it does."""
    import ray

    waited = 0.0
    while not ray.wait([ref], timeout=PATIENCE_S)[0]:
        waited += PATIENCE_S
        there, free = ray.cluster_resources(), ray.available_resources()
        room = ", ".join(f"{free.get(key, 0.0):g} of {there.get(key, 0.0):g} {key}s" for key in ("CPU", "GPU"))
        print(f"rewards.{name} has waited {waited:.0f} s for its actor to start; free are {room}", flush=True)
    return ray.get(ref)


REPORT_S = 5.0
"""After so long without an answer it is told who is waited for, and again each time."""


class RewardPools:
    """Handles of all reward actors, by component.

    Leases go round the actors of a pool; which one answers makes no difference to the numbers. An actor that dies is
    restarted by Ray, and its call is made again, of another one: scoring has no side effect. A batch that an actor got
    stuck at is tried once more; then the run ends with it.
    """

    def __init__(self, actors: Mapping[str, Sequence[Any]], retries: int = 5) -> None:
        self.actors = {name: list(pool) for name, pool in actors.items()}
        self.retries = retries
        self._turns = dict.fromkeys(self.actors, 0)
        self._first: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the components."""
        return list(self.actors)

    def wait_until_ready(self) -> dict[str, str]:
        """Signatures by component, once every actor has built its own.

        Raises:
            RaycapError: what a component refused.
        """
        signatures = {name: [self._signature(name, actor) for actor in pool] for name, pool in self.actors.items()}
        return {name: of_pool[0] for name, of_pool in signatures.items()}

    def _signature(self, name: str, actor: Any) -> str:
        import ray

        for attempt in range(1, self.retries + 1):
            try:
                return str(_patiently(name, actor.ready.remote()))
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, RaycapError) else error) from None
            except ray.exceptions.RayActorError as error:
                if attempt == self.retries or not isinstance(error, ray.exceptions.ActorUnavailableError):
                    raise WorkFailed(f"its actor could not start: {str(error)[:500]}", key=f"rewards.{name}",
                                     remedy="look at the actor's log") from error  # fmt: skip
                time.sleep(0.5 * attempt)  # it is being started again
        raise AssertionError("unreachable")

    def score(
        self, lease: Lease, generation: Generation, waiting: Callable[[Sequence[str]], None] = lambda names: None
    ) -> dict[str, ComponentScores]:
        """Scores of a lease by every component, all asked at once. Several threads may ask.

        Args:
            waiting: called now and then with the names of the components that have not answered.

        Raises:
            RewardError: a component broke the contract.
            RewardStuck: a component takes too long for this batch.
            WorkFailed: a component's actors kept dying.
        """
        import ray

        asked = {name: self._ask(name, lease, generation) for name in self.actors}
        scores: dict[str, ComponentScores] = {}
        while left := [name for name in asked if name not in scores]:
            refs = {asked[name].ref: name for name in left}
            ray.wait(list(refs), num_returns=1, timeout=REPORT_S)
            ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            for name in (refs[ref] for ref in ended):
                answer = self._answer(asked[name])
                if answer is None:
                    self._send(asked[name])
                else:
                    scores[name] = answer
            if not ended:
                waiting(left)
        return {name: scores[name] for name in self.actors}

    def _ask(self, name: str, lease: Lease, generation: Generation) -> _Asked:
        asked = _Asked(name, lease, generation)
        self._send(asked)
        return asked

    def _send(self, asked: _Asked) -> None:
        pool = self.actors[asked.name]
        if self._first is None:  # each process begins at another actor
            self._first = os.getpid()
        turn, self._turns[asked.name] = self._turns[asked.name], self._turns[asked.name] + 1
        actor = pool[(self._first + turn) % len(pool)]
        asked.ref = actor.score.remote(asked.lease.image_ids, asked.generation)

    def _answer(self, asked: _Asked) -> ComponentScores | None:
        """What a call that has ended brought; None when it is to be made again."""
        import ray

        try:
            return ray.get(asked.ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RewardStuck) and not asked.stuck:
                print(f"{error.cause}; its actor is started again", flush=True)
                asked.stuck = True
                return None
            if isinstance(error.cause, RaycapError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            asked.deaths += 1
            if asked.deaths >= self.retries:
                raise WorkFailed(f"its actors died {asked.deaths} times: {error}", key=f"rewards.{asked.name}",
                                 remedy="look at the actor's log; give it more memory") from error  # fmt: skip
        time.sleep(min(10.0, 0.5 * 2**asked.deaths))
        return None


@dataclass
class _Asked:
    """A batch at one component, and what befell it."""

    name: str
    lease: Lease
    generation: Generation
    ref: Any = None
    deaths: int = 0
    stuck: bool = False
