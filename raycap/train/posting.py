"""Records on their way to a server: a thread sends them, so that nobody who learns waits for it, or ends with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Dated = tuple[float, Mapping[str, Any]]
"""A record, and when it was logged (seconds since the epoch)."""


class Server(Protocol):
    """A run on a server, once somebody has connected to it. What it is sent twice it must count once."""

    def send(self, records: Sequence[Dated]) -> None: ...
    def close(self, status: str) -> None: ...


class Posted:
    """What one server gets, a few seconds' records at a time.

    One that is away is tried again, with what it has missed; the first time it is spoken of.

    Args:
        connect: to the server, called in the thread, and again after a failure.
        warn: called with the first error.
        every_s: between two sendings.
        retry_s: after one that failed.
        keep: records that wait for a server that is away; the oldest go.
    """

    def __init__(
        self, connect: Callable[[], Server], warn: Callable[[Exception], None], *, every_s: float = 5.0,
        retry_s: float = 60.0, keep: int = 2000,
    ) -> None:  # fmt: skip
        self._connect, self._warn = connect, warn
        self.every_s, self.retry_s, self.keep = every_s, retry_s, keep
        self._waiting: list[Dated] = []
        self._status = ""
        self._changed = threading.Condition()
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Never waits."""
        with self._changed:
            self._waiting = [*self._waiting, (time.time(), record)][-self.keep :]
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, name="log", daemon=True)
            self._thread.start()

    def close(self, status: str, wait_s: float = 20.0) -> None:
        """Send what is left and end the run there, in the time that there is."""
        if self._thread is None:
            return
        with self._changed:
            self._status = status
            self._changed.notify()
        self._thread.join(wait_s)

    def _send_all(self) -> None:
        pause_s, warned = 0.0, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._status, timeout=pause_s)
                self._changed.wait_for(lambda: self._status or self._waiting)
                status, records, self._waiting = self._status, self._waiting, []
            try:
                self._send(records, status)
                pause_s = self.every_s
            except Exception as error:  # noqa: BLE001 - whatever its library raises
                self._server = None
                if not warned:
                    self._warn(error)
                warned, pause_s = True, self.retry_s
                with self._changed:
                    self._waiting = [*records, *self._waiting][-self.keep :]
            if status:
                return

    def _send(self, records: Sequence[Dated], status: str) -> None:
        if self._server is None and records:
            self._server = self._connect()
        if self._server is not None:
            if records:
                self._server.send(records)
            if status:
                self._server.close(status)
