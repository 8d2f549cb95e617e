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
from functools import partial
from typing import Any

from raycap.cluster.passing import may_pass, tried_again
from raycap.cluster.reaching import AWAY_S, LOGS, in_a_line, said
from raycap.cluster.room import patiently
from raycap.errors import RaycapError, RewardStuck, WorkFailed
from raycap.rewards.context import ContextSpec
from raycap.rewards.contract import Component, build_component, score_generation
from raycap.types import ComponentScores, Generation, Lease


class RewardWorker:
    """One component in a process of its own, built once the process is there.

    Args:
        timeout_s: for one batch; a component that takes longer is stuck, its process with it, and ends.
        shares_gpu: by turns: memory is given back after each batch.
    """

    def __init__(
        self, name: str, spec: ContextSpec, options: Mapping[str, Any], source: str, threads: int,
        timeout_s: float = math.inf, shares_gpu: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.timeout_s = name, timeout_s
        self._shared_device = spec.device if shares_gpu else ""
        # In one thread beside Ray's own, which waits for a batch no longer than `timeout_s`. It builds the component,
        # too: an actor that has lost its place and one that is still being made look the same from outside, and what
        # this constructor raised would be the death of the actor.
        self._scorer = ThreadPoolExecutor(1)
        self._component = self._scorer.submit(self._build, spec, options, source, threads)

    def _build(self, spec: ContextSpec, options: Mapping[str, Any], source: str, threads: int) -> Component:
        who = f"rewards.{self.name}"
        try:
            built = tried_again(who, lambda: build_component(self.name, spec.open(), options, source))
        except Exception as error:  # of a component of anybody's; what may not pass is raised as it is
            if not may_pass(error):
                raise
            raise WorkFailed(f"could not be built, several times over, the last time of {in_a_line(error)}", key=who,
                             remedy="run the same command again once its storage answers; give it more memory",
                             ) from error  # fmt: skip
        _take_threads(threads)
        return built

    def ready(self) -> str:
        """The component's signature, once it is built; raises what it refused."""
        return str(getattr(self._component.result(), "signature", self.name))

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
            caption, image = next(iter(generation.captions), ""), next(iter(image_ids), "")
            raise RewardStuck(f"took longer than {self.timeout_s:g} s for a batch that begins with {caption!r} of "
                              f"{image}", key=f"rewards.{self.name}",
                              remedy="raise cluster.reward_timeout_s where that is no fault",
                              ) from None  # fmt: skip

    def _score(self, image_ids: Sequence[str], generation: Generation) -> ComponentScores:
        try:
            return score_generation(self.name, self._component.result(), image_ids, generation)
        finally:
            if self._shared_device == "cuda":  # CIDEr-D and its like need no torch
                from raycap.train.turns import release_cache

                release_cache(self._shared_device)


_LAST_WORDS_S = 1.0


def _take_threads(threads: int) -> None:
    if "torch" in sys.modules:  # CIDEr-D and its like need none; importing it takes seconds
        sys.modules["torch"].set_num_threads(threads)  # of this thread


def _answered(ref: Any, wait_s: float) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=wait_s)[0])


REPORT_S = 5.0
"""After so long without an answer it is told who is waited for, and again each time."""


class RewardPools:
    """Handles of all reward actors, by component.

    Leases go round the actors of a pool; which one answers makes no difference to the numbers. An actor that dies is
    restarted by Ray, and its call is made again, of the next one that is there: scoring has no side effect. As long as
    none is there they are knocked at, which is no death of a batch. One that an actor got stuck at is tried once more;
    then the run ends with it.
    """

    def __init__(self, actors: Mapping[str, Sequence[Any]], retries: int = 5, away_s: float = AWAY_S) -> None:
        self.actors = {name: list(pool) for name, pool in actors.items()}
        self.retries, self.away_s = retries, away_s
        self._turns = dict.fromkeys(self.actors, 0)
        self._first: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the components."""
        return list(self.actors)

    def wait_until_ready(self, limit_s: float = math.inf, look: Callable[[], None] = lambda: None) -> dict[str, str]:
        """Signatures by component, once every actor has built its own.

        Args:
            limit_s: for each actor.
            look: called now and then; may raise, to wait no longer.

        Raises:
            RaycapError: what a component refused; WorkFailed when an actor finds no room, or cannot start.
        """
        signatures = {
            name: [self._signature(name, actor, limit_s, look) for actor in pool] for name, pool in self.actors.items()
        }
        return {name: of_pool[0] for name, of_pool in signatures.items()}

    def _signature(self, name: str, actor: Any, limit_s: float, look: Callable[[], None]) -> str:
        import ray

        began = time.monotonic()
        while True:
            try:
                ref = actor.ready.remote()
                patiently(f"rewards.{name}", partial(_answered, ref), limit_s, look)
                return str(ray.get(ref))
            except ray.exceptions.RayTaskError as error:
                raise (said(error) if isinstance(said(error), RaycapError) else error) from None
            except ray.exceptions.RayActorError as error:
                restarts = isinstance(error, ray.exceptions.ActorUnavailableError)
                if not restarts or time.monotonic() - began > self.away_s:
                    raise _could_not_start(name, error) from error
            look()
            time.sleep(KNOCK_S)

    def score(
        self, lease: Lease, generation: Generation, waiting: Callable[[Sequence[str]], None] = lambda names: None
    ) -> dict[str, ComponentScores]:
        """Scores of a lease by every component, all asked at once. Several threads may ask.

        Args:
            waiting: called with whom it waits for, the components that have not answered; now and then, and when one
                has.

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
                if (answer := self._answer(asked[name])) is not None:
                    scores[name] = answer
            if still := [asked[name].whom for name in left if name not in scores]:
                waiting(still)
        return {name: scores[name] for name in self.actors}

    def _ask(self, name: str, lease: Lease, generation: Generation) -> _Asked:
        asked = _Asked(name, lease, generation, self._next(name))
        self._send(asked)
        return asked

    def _send(self, asked: _Asked) -> None:
        asked.knocking = False
        asked.ref = asked.actor.score.remote(asked.lease.image_ids, asked.generation)

    def _knock(self, asked: _Asked) -> None:
        """At the next actor of the pool: whether it is there, or will be."""
        asked.actor, asked.knocking = self._next(asked.name), True
        asked.ref = asked.actor.ready.remote()

    def _next(self, name: str) -> Any:
        pool = self.actors[name]
        if self._first is None:  # each process begins at another actor
            self._first = os.getpid()
        turn, self._turns[name] = self._turns[name], self._turns[name] + 1
        return pool[(self._first + turn) % len(pool)]

    def _answer(self, asked: _Asked) -> ComponentScores | None:
        """What a call that has ended brought; None when another one was made."""
        import ray

        try:
            scores = ray.get(asked.ref)
        except ray.exceptions.RayTaskError as error:
            cause = said(error)
            if isinstance(cause, RewardStuck) and not asked.stuck:
                print(f"{cause}; its actor is started again", flush=True)
                asked.stuck = True
                time.sleep(_LAST_WORDS_S)  # until then it would still answer
            elif isinstance(cause, RaycapError):
                raise cause from None
            else:
                raise
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:  # of none that it was asked: it never was, and Ray starts it no more
                self._leave_out(asked.name, asked.actor, error)
            elif asked.knocking and isinstance(error, ray.exceptions.ActorUnavailableError):
                time.sleep(KNOCK_S)  # it is being started again
            else:
                asked.died_of(error, self.retries)
        else:
            if not asked.knocking:
                return scores
            self._send(asked)
            return None
        self._knock(asked)
        return None

    def _leave_out(self, name: str, actor: Any, error: Exception) -> None:
        """The others of its pool do its work.

        Raises:
            WorkFailed: there are none.
        """
        others = [each for each in self.actors[name] if each != actor]
        if not others:
            raise _could_not_start(name, error) from error
        if len(others) < len(self.actors[name]):
            print(f"rewards.{name}: an actor could not start ({in_a_line(error)}); its pool has {len(others)} left",
                  flush=True)  # fmt: skip
        self.actors[name] = others


def _could_not_start(name: str, error: Exception) -> WorkFailed:
    return WorkFailed(f"its actor could not start: {in_a_line(error)}", key=f"rewards.{name}",
                      remedy=f"look at the actor's log in {LOGS}")  # fmt: skip


KNOCK_S = 0.5
"""Between two knocks at a pool whose actors are being started again. A stalled run is ended by the Exchange."""


@dataclass
class _Asked:
    """A batch at one component, and what befell it. `ref` is the call that is out: for its scores or, `knocking`,
    whether the actor is there."""

    name: str
    lease: Lease
    generation: Generation
    actor: Any
    ref: Any = None
    knocking: bool = False
    deaths: int = 0
    stuck: bool = False

    @property
    def whom(self) -> str:
        """Whom it waits for, in words."""
        return f"{self.name}, whose actors are being started again" if self.knocking else self.name

    def died_of(self, error: Exception, limit: int) -> None:
        self.deaths += 1
        if self.deaths >= limit:
            first = next(iter(self.lease.image_ids), "")
            raise WorkFailed(f"its actors died {self.deaths} times of a batch that begins with {first}, the last one "
                             f"of {in_a_line(error)}",
                             key=f"rewards.{self.name}",
                             remedy=f"give it more memory; look at the actor's log in {LOGS}",
                             ) from error  # fmt: skip
