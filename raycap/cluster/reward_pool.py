"""Reward components in pools of actors: each component its own pool with its own resources, all asked at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
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


class RewardPools:
    """Handles of all reward actors, by component.

    A lease's number chooses the actor; which one answers makes no difference to the numbers. An actor that dies is
    restarted by Ray, and its call is made again: scoring has no side effect.
    """

    def __init__(self, actors: Mapping[str, Sequence[Any]], retries: int = 5) -> None:
        self.actors, self.retries = {name: list(pool) for name, pool in actors.items()}, retries

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

    def score(self, lease: Lease, generation: Generation) -> dict[str, ComponentScores]:
        """Scores of a lease by every component.

        Raises:
            RewardError: a component broke the contract.
            WorkFailed: a component's actors kept dying.
        """
        pending = {name: self._ask(name, lease, generation, 0) for name in self.actors}
        return {name: self._answer(name, ref, lease, generation) for name, ref in pending.items()}

    def _ask(self, name: str, lease: Lease, generation: Generation, attempt: int) -> Any:
        pool = self.actors[name]
        return pool[(lease.number + attempt) % len(pool)].score.remote(lease.image_ids, generation)

    def _answer(self, name: str, ref: Any, lease: Lease, generation: Generation) -> ComponentScores:
        import ray

        for attempt in range(1, self.retries + 1):
            try:
                return ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, RaycapError):
                    raise error.cause from None
                raise
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.ActorDiedError) as error:
                if attempt == self.retries:
                    raise WorkFailed(f"its actors died {attempt} times: {error}", key=f"rewards.{name}",
                                     remedy="look at the actor's log; give it more memory") from error  # fmt: skip
                time.sleep(min(10.0, 0.5 * 2**attempt))
                ref = self._ask(name, lease, generation, attempt)
        raise AssertionError("unreachable")
