"""The crew of rollout actors: started, watched, replaced when they die, sent home at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from raycap.cluster.reaching import reached
from raycap.errors import RaycapError, WorkFailed

TELL_S = 5.0
"""Between two times that an error which ends the run is told."""


class RolloutCrew:
    """Keeps `size` rollout actors at work.

    Args:
        start: makes one actor from its name.
        exchange: handle of the Exchange; it is told of every loss.
        hopeless_after: deaths a worker, in a row without one delivered lease between them, that end the run.
    """

    def __init__(self, start: Callable[[str], Any], exchange: Any, size: int, hopeless_after: int = 5) -> None:
        self.start, self.exchange, self.size, self.hopeless_after = start, exchange, size, hopeless_after
        self.losses: list[str] = []
        self._in_a_row, self._delivered = 0, 0
        self._started = 0
        self._at_work: dict[Any, tuple[str, Any]] = {}  # result reference → (name, actor)
        self._fatal: RaycapError | None = None
        self._told = 0.0  # of it, when last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rollout-crew", daemon=True)

    def __enter__(self) -> RolloutCrew:
        for _ in range(self.size):
            self._hire()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        import ray

        self._stop.set()
        self._thread.join()
        for _, actor in self._at_work.values():
            ray.kill(actor)

    def _hire(self) -> None:
        name = f"rollout-{self._started}"
        self._started += 1
        actor = self.start(name)
        self._at_work[actor.run.remote(self.exchange)] = (name, actor)

    def _watch(self) -> None:
        import ray

        while not self._stop.is_set():
            done, _ = ray.wait(list(self._at_work), num_returns=1, timeout=0.5) if self._at_work else ([], [])
            for ref in done:
                name, _actor = self._at_work.pop(ref)
                try:
                    error = ray.get(ref)["error"]
                except ray.exceptions.RayError as lost:
                    self._replace(name, lost)
                else:  # the Exchange has closed, or heard of this; one that was made anew has not
                    self._fatal = self._fatal or error
            self._tell_what_is_fatal()

    def _tell_what_is_fatal(self) -> None:
        """Again and again until the run ends of it: an Exchange that is started anew has not heard of it."""
        if self._fatal is None or time.monotonic() - self._told < TELL_S:
            if not self._at_work:
                self._stop.wait(0.5)
            return
        self._report(lambda: self.exchange.fail.remote(self._fatal))
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
            return
        self._hire()

    def _report(self, call: Callable[[], Any]) -> Any:
        """To the Exchange. One that is away knows nothing of leases when it is back, and needs no report of losses."""
        import ray

        try:
            return reached(call, given_up=self._stop)
        except ray.exceptions.RayError as error:
            if not self._stop.is_set():
                print(f"the Exchange could not be told: {str(error).splitlines()[0][:160]}", flush=True)
            return None
