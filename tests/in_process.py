"""Ray in one process, for code that calls actors: calls are threads' and an event loop's, references are futures.

Enough for plain classes and for the Exchange's coroutines; nothing dies here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as futures
import inspect
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray


class Call:
    """`method.remote(...)` of a handle."""

    def __init__(self, function: Any, loop: asyncio.AbstractEventLoop, pool: futures.Executor) -> None:
        self.function, self.loop, self.pool = function, loop, pool

    def remote(self, *args: Any) -> futures.Future[Any]:
        if inspect.iscoroutinefunction(self.function):
            return asyncio.run_coroutine_threadsafe(self.function(*args), self.loop)
        return self.pool.submit(self.function, *args)


class Actors:
    """Makes handles of objects. Coroutines of all of them share one loop; other methods run one at a time an object."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.pools: list[futures.ThreadPoolExecutor] = []

    def handle(self, actor: Any) -> Any:
        self.pools.append(futures.ThreadPoolExecutor(1))
        names = [name for name in dir(actor) if not name.startswith("_") and callable(getattr(actor, name))]
        calls = {name: Call(getattr(actor, name), self.loop, self.pools[-1]) for name in names}
        return SimpleNamespace(**calls)

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown(wait=False)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


def get(refs: Any, timeout: float | None = None) -> Any:
    if isinstance(refs, list):
        return [get(ref, timeout) for ref in refs]
    return refs.result(timeout)


def put(value: Any) -> futures.Future[Any]:
    stored: futures.Future[Any] = futures.Future()
    stored.set_result(value)
    return stored


def wait(refs: Sequence[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    when = futures.FIRST_COMPLETED if num_returns == 1 else futures.ALL_COMPLETED
    done, _ = futures.wait(refs, timeout, when)
    return [ref for ref in refs if ref in done], [ref for ref in refs if ref not in done]


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Ray's functions that need no cluster here."""
    for function in (get, put, wait):
        patch.setattr(ray, function.__name__, function)
