"""The crew of rollout actors: started, watched, replaced when they die, sent home at the end.

The learner gets room first: while its worker group finds none, the crew goes home and comes back once it is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raycap.cluster.reaching import answer, reached
from raycap.cluster.room import PATIENCE_S, LearnersRoom, free_room
from raycap.errors import RaycapError, WorkFailed

LOOK_S, YIELD_S = 5.0, 10.0
"""How often room is looked at, and how long the learner waits for some before the crew goes."""
TELL_S = 5.0
"""Between two times that an error which ends the run is told."""


@dataclass
class _Worker:
    """`ready`: resolved once its process is there, None from then on; `asked`, `told`: when it was asked for, and when
    it was last said that it waits."""

    name: str
    actor: Any
    ready: Any
    asked: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)


class RolloutCrew:
    """Keeps `size` rollout actors at work, or as many as there is room for.

    Args:
        start: makes one actor from its name.
        exchange: handle of the Exchange; it is told of every loss.
        hopeless_after: deaths a worker, in a row without one delivered lease between them, that end the run.
        at_once: started before the learner is there; the others would take its place.
        room: of the learner; None where nobody looks after it.
    """

    def __init__(
        self, start: Callable[[str], Any], exchange: Any, size: int, hopeless_after: int = 5, *,
        at_once: int | None = None, room: LearnersRoom | None = None,
    ) -> None:  # fmt: skip
        self.start, self.exchange, self.size, self.hopeless_after = start, exchange, size, hopeless_after
        self.at_once, self.room = size if at_once is None else at_once, room
        self.losses: list[str] = []
        self._in_a_row, self._delivered = 0, 0
        self._started = 0
        self._at_work: dict[Any, _Worker] = {}  # by the reference of what its work will have been
        self._looked = time.monotonic()
        self._over = False  # nobody is hired any more
        self._fatal: RaycapError | None = None
        self._told = 0.0  # of it, when last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rollout-crew", daemon=True)

    def __enter__(self) -> RolloutCrew:
        self._hire(self.at_once)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        import ray

        self._stop.set()
        self._thread.join()
        for worker in self._at_work.values():
            ray.kill(worker.actor)

    def _hire(self, count: int) -> None:
        for _ in range(count):
            name = f"rollout-{self._started}"
            self._started += 1
            actor = self.start(name)
            worker = _Worker(name, actor, actor.__ray_ready__.remote())
            self._at_work[actor.run.remote(self.exchange)] = worker

    def _watch(self) -> None:
        while not self._stop.is_set():
            for ref in self._ended():
                self._came_home(self._at_work.pop(ref), ref)
            if self._fatal is not None and time.monotonic() - self._told >= TELL_S:
                self._tell_what_is_fatal()
            if not self._over and time.monotonic() - self._looked >= LOOK_S:
                self._look()
                self._looked = time.monotonic()

    def _ended(self) -> list[Any]:
        """References of those whose work has ended, waited for a moment."""
        import ray

        if not self._at_work:
            self._stop.wait(0.5)
            return []
        done, _ = ray.wait(list(self._at_work), num_returns=1, timeout=0.5)
        return done

    def _came_home(self, worker: _Worker, ref: Any) -> None:
        import ray

        try:
            error = ray.get(ref)["error"]
        except ray.exceptions.RayError as lost:
            self._replace(worker.name, lost)
        else:  # the Exchange has closed, or heard of this; one that was made anew has not
            self._over = True
            self._fatal = self._fatal or error

    def _tell_what_is_fatal(self) -> None:
        """Again and again until the run ends of it: an Exchange that is started anew has not heard of it."""
        self._report(partial(self.exchange.fail.remote, self._fatal))
        self._told = time.monotonic()

    def is_hopeless(self, delivered: int) -> bool:
        """Count one more death, `delivered` leases into the run: whether nothing ever comes of starting others."""
        self._in_a_row = 1 if delivered != self._delivered else self._in_a_row + 1
        self._delivered = delivered
        return self._in_a_row >= self.hopeless_after * self.size

    def _replace(self, name: str, error: Exception) -> None:
        if self._stop.is_set():
            return
        self.losses.append(f"{name}: {type(error).__name__}")
        print(f"{name} was lost ({str(error).splitlines()[0][:160]}); another takes its place", flush=True)
        self._report(lambda: self.exchange.worker_lost.remote(name))
        status = self._report(lambda: self.exchange.status.remote())
        if status is not None and self.is_hopeless(status["counts"].get("delivered", 0)):
            self._fatal = WorkFailed(f"rollout workers died {self._in_a_row} times with nothing delivered between, the "
                                     f"last one of: {error}", key="cluster.rollout_workers", value=self.size,
                                     remedy="look at the rollout workers' logs")  # fmt: skip
            self._over = True
            return
        self._hire(1)

    def _look(self) -> None:
        """Who waits for room, and who makes some."""
        silent = self._learner_silent_s()
        if self.room is not None and self.room.waited_s() >= YIELD_S and (silent is None or silent >= YIELD_S):
            self._send_home()
        elif silent is not None and silent < YIELD_S and len(self._at_work) < self.size:
            self._hire(self.size - len(self._at_work))
        self._say_who_waits()

    def _learner_silent_s(self) -> float | None:
        """Since the Exchange last heard the learner; None when it never did, or is away itself."""
        import ray

        try:
            silent: float | None = answer(lambda: self.exchange.status.remote())["learner_silent_s"]
        except ray.exceptions.RayError:
            return None
        return silent

    def _send_home(self) -> None:
        """Room for the learner: without it there is nothing to generate for."""
        import ray

        if not self._at_work:
            return
        count = len(self._at_work)
        print(f"the learner finds no room: {count} rollout workers make place until it is there", flush=True)
        for ref, worker in list(self._at_work.items()):
            del self._at_work[ref]
            ray.kill(worker.actor)
            self._report(partial(self.exchange.worker_lost.remote, worker.name, suspicious=False))

    def _say_who_waits(self) -> None:
        import ray

        now = time.monotonic()
        for worker in self._at_work.values():
            if worker.ready is not None and ray.wait([worker.ready], timeout=0)[0]:
                worker.ready = None
        there = sum(worker.ready is None for worker in self._at_work.values())
        for worker in self._at_work.values():
            if worker.ready is not None and now - worker.told >= PATIENCE_S:
                worker.told = now
                print(f"{worker.name} has waited {now - worker.asked:.0f} s to start; {there} of {self.size} rollout "
                      f"workers are there; free are {free_room()}", flush=True)  # fmt: skip

    def _report(self, call: Callable[[], Any]) -> Any:
        """To the Exchange. One that is away knows nothing of leases when it is back, and needs no report of losses."""
        import ray

        try:
            return reached(call, given_up=self._stop)
        except ray.exceptions.RayError as error:
            if not self._stop.is_set():
                print(f"the Exchange could not be told: {str(error).splitlines()[0][:160]}", flush=True)
            return None
