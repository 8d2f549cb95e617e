"""The crew of rollout actors: started, watched, replaced when they die, sent home at the end.

Others get room first: while the learner's worker group finds none, the crew goes home and comes back once it is there;
while a reward actor that was lost finds none, one worker after the other goes, down to the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raycap.cluster.absence import Absence
from raycap.cluster.reaching import LOGS, answer, in_a_line, reached
from raycap.cluster.room import PATIENCE_S, LearnersRoom, free_room
from raycap.errors import RaycapError, WorkFailed

TELL_S = 5.0
"""Between two times that an error which ends the run is told."""

LOOK_S, YIELD_S = 5.0, 10.0
"""How often room is looked at, and how long the learner, or a reward actor, waits for some before workers go."""


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
        hopeless_after: deaths a worker, in a row without one lease delivered or set aside between them, that end the
            run; more than `quarantine_after` in any case.
        at_once: started before the learner is there; the others would take its place.
        room: of the learner; None where nobody looks after it.
        rewards: reward actors, by component: a generated lease needs all components.
        quarantine_after: deaths that a lease is set aside after.
    """

    def __init__(
        self, start: Callable[[str], Any], exchange: Any, size: int, hopeless_after: int = 5, *,
        at_once: int | None = None, room: LearnersRoom | None = None, rewards: Absence | None = None,
        quarantine_after: int = 0,
    ) -> None:  # fmt: skip
        self.start, self.exchange, self.size = start, exchange, size
        # leases of a step that kill their workers one after the other are set aside, and the run goes on
        self.hopeless_after = max(hopeless_after * size, quarantine_after + 1)
        self.at_once, self.room, self.rewards = size if at_once is None else at_once, room, rewards or Absence()
        self.losses: list[str] = []
        self._in_a_row, self._settled = 0, 0
        self._made_place = 0.0  # for a reward actor, when last
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
        import ray

        while not self._stop.is_set():
            try:
                if self._fatal is None:
                    self._keep_up()
                else:
                    self._stop.wait(0.5)
                self._tell_what_is_fatal()
            except ray.exceptions.RayError as error:  # of Ray's own, for a moment
                print(f"the crew of rollout workers goes on after {in_a_line(error)}", flush=True)
                self._stop.wait(0.5)
            except Exception as error:  # noqa: BLE001 - nobody else would replace a worker, or say why nobody does
                self._end_with(WorkFailed(f"the crew of rollout workers failed: {in_a_line(error)}", key="worker",
                                          remedy="this is a fault of raycap's; please report it"))  # fmt: skip

    def _keep_up(self) -> None:
        for ref in self._ended():
            self._came_home(self._at_work.pop(ref), ref)
        if not self._over and time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._look()

    def _end_with(self, error: RaycapError) -> None:
        self._over, self._fatal = True, self._fatal or error

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
            return
        self._over = True  # the Exchange has closed, or heard of this; one that was made anew has not
        self._fatal = self._fatal or error

    def _tell_what_is_fatal(self) -> None:
        """Again and again until the run ends of it: an Exchange that is started anew has not heard of it."""
        if self._fatal is not None and time.monotonic() - self._told >= TELL_S:
            self._report(lambda: self.exchange.fail.remote(self._fatal))
            self._told = time.monotonic()

    def is_hopeless(self, settled: int) -> bool:
        """Count one more death, `settled` leases (delivered or set aside) into the run: whether nothing ever comes of
        starting others."""
        self._in_a_row = 1 if settled != self._settled else self._in_a_row + 1
        self._settled = settled
        return self._in_a_row >= self.hopeless_after

    def _replace(self, name: str, error: Exception) -> None:
        if self._stop.is_set():
            return
        self.losses.append(f"{name}: {type(error).__name__}")
        print(f"{name} was lost ({in_a_line(error, 160)}); another takes its place", flush=True)
        self._report(lambda: self.exchange.worker_lost.remote(name))
        status = self._report(lambda: self.exchange.status.remote())
        counts = {} if status is None else status["counts"]
        if status is not None and self.is_hopeless(counts.get("delivered", 0) + counts.get("quarantined", 0)):
            self._end_with(WorkFailed(f"rollout workers died {self._in_a_row} times with nothing delivered or set "
                                      f"aside between, the last one of {in_a_line(error)}",
                                      key="cluster.rollout_workers", value=self.size,
                                      remedy=f"look at the rollout workers' logs in {LOGS}"))  # fmt: skip
        elif not self.rewards.missing():
            self._hire(1)

    def _look(self) -> None:
        """Who waits for room, and who makes some."""
        self.rewards.look()
        silent, missing = self._learner_silent_s(), self.rewards.missing()
        if self.room is not None and self.room.waited_s() >= YIELD_S and (silent is None or silent >= YIELD_S):
            self._send_home()
        elif missing:
            self._make_place(missing)
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
        if not self._at_work:
            return
        count = len(self._at_work)
        print(f"the learner finds no room: {count} rollout workers make place until it is there", flush=True)
        for ref in list(self._at_work):
            self._let_go(ref)

    def _make_place(self, missing: Mapping[str, float]) -> None:
        """Room for a reward: without it nothing is delivered, and one worker less costs only time. Nobody is hired
        meanwhile."""
        name, now = max(missing, key=lambda name: missing[name]), time.monotonic()
        if missing[name] < YIELD_S or now - self._made_place < YIELD_S or len(self._at_work) < 2:
            return
        self._made_place = now
        # who waits for a place itself goes first: it may be given the one that the reward waits for
        last = list(self._at_work.items())[::-1]
        ref, worker = next((each for each in last if each[1].ready is not None), last[0])
        print(f"rewards.{name} finds no room: {worker.name} makes place until it is there", flush=True)
        self._let_go(ref)

    def _let_go(self, ref: Any) -> None:
        import ray

        worker = self._at_work.pop(ref)
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
        for name, waited in self.rewards.untold(PATIENCE_S):
            print(f"rewards.{name} has waited {waited:.0f} s to start again; free are {free_room()}", flush=True)

    def _report(self, call: Callable[[], Any]) -> Any:
        """To the Exchange. One that is away knows nothing of leases when it is back, and needs no report of losses."""
        import ray

        try:
            return reached(call, given_up=self._stop)
        except ray.exceptions.RayError as error:
            if not self._stop.is_set():
                print(f"the Exchange could not be told: {in_a_line(error, 160)}", flush=True)
            return None
