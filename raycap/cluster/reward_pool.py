"""Reward components in pools of actors: each component its own pool with its own resources, all asked at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycap.errors import RaycapError, WorkFailed
from raycap.rewards.context import ContextSpec
from raycap.rewards.contract import build_component, score_generation
from raycap.types import ComponentScores, Generation, Lease


class RewardWorker:
    """One component in a process of its own."""

    def __init__(self, name: str, spec: ContextSpec, options: Mapping[str, Any], source: str, threads: int) -> None:
        self.name, self.refused = name, None
        try:
            self.component = build_component(name, spec.open(), options, source)
        except RaycapError as error:  # raised here, it would reach callers as the death of an actor
            self.refused = error
        if "torch" in sys.modules:  # CIDEr-D and its like need none; importing it takes seconds
            sys.modules["torch"].set_num_threads(threads)

    def ready(self) -> str:
        """The component's signature, once it is built; raises what it refused."""
        if self.refused is not None:
            raise self.refused
        return str(getattr(self.component, "signature", self.name))

    def score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        self.ready()
        return score_generation(self.name, self.component, image_ids, generation)


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
    restarted by Ray, and its call is made again, of another one: scoring has no side effect. One that does not answer
    for `timeout_s` is started again too; a batch that this happens to twice ends the run.
    """

    def __init__(self, actors: Mapping[str, Sequence[Any]], retries: int = 5, timeout_s: float = 600.0) -> None:
        self.actors = {name: list(pool) for name, pool in actors.items()}
        self.retries, self.timeout_s = retries, timeout_s
        self._turns = dict.fromkeys(self.actors, 0)
        self._first: int | None = None

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
            WorkFailed: a component's actors kept dying, or do not answer.
        """
        asked = {name: self._ask(name, lease, generation) for name in self.actors}
        scores: dict[str, ComponentScores] = {}
        while left := [name for name in asked if name not in scores]:
            ended = self._ended([asked[name] for name in left])
            for name in left:
                answer = self._answer(asked[name]) if name in ended else self._check_patience(asked[name])
                if answer is not None:
                    scores[name] = answer
                elif asked[name].ref is None:
                    self._send(asked[name])
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
        asked.actor = pool[(self._first + turn) % len(pool)]
        asked.since = time.monotonic()
        asked.ref = asked.actor.score.remote(asked.lease.image_ids, asked.generation)

    def _ended(self, asked: Sequence[_Asked]) -> set[str]:
        """Names of those whose call has ended; some time is spent waiting for one."""
        import ray

        patience = min([REPORT_S, *(each.since + self.timeout_s - time.monotonic() for each in asked)])
        ended, _ = ray.wait([each.ref for each in asked], num_returns=1, timeout=max(0.0, patience))
        return {each.name for each in asked if each.ref in ended}

    def _answer(self, asked: _Asked) -> ComponentScores | None:
        """What a call that has ended brought; None when it is to be made again."""
        import ray

        try:
            return ray.get(asked.ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaycapError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            asked.deaths += 1
            if asked.deaths >= self.retries:
                raise WorkFailed(f"its actors died {asked.deaths} times: {error}", key=f"rewards.{asked.name}",
                                 remedy="look at the actor's log; give it more memory") from error  # fmt: skip
        time.sleep(min(10.0, 0.5 * 2**asked.deaths))
        asked.ref = None
        return None

    def _check_patience(self, asked: _Asked) -> None:
        """Start an actor again that has not answered for too long; its call is to be made again."""
        import ray

        if time.monotonic() - asked.since < self.timeout_s:
            return
        asked.late += 1
        if asked.late >= 2:
            said, image = asked.generation.captions[0], asked.lease.image_ids[0]
            raise WorkFailed(f"did not answer for {self.timeout_s:g} s, {asked.late} times over; the batch begins with "
                             f"{said!r} of image {image}", key=f"rewards.{asked.name}",
                             remedy="raise cluster.reward_timeout_s where it is slow and not stuck")  # fmt: skip
        print(f"rewards.{asked.name} has not answered for {self.timeout_s:g} s: its actor is started again", flush=True)
        ray.kill(asked.actor, no_restart=False)
        asked.ref = None


@dataclass
class _Asked:
    """A batch at one component: where it lies, since when (seconds, monotonic), what befell it."""

    name: str
    lease: Lease
    generation: Generation
    actor: Any = None
    ref: Any = None
    since: float = 0.0
    deaths: int = 0
    late: int = 0
