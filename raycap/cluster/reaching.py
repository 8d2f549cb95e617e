"""Calls to an actor: what it says itself, what says that it is away, and the call made once more when it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

AWAY_S, ANSWER_S = 120.0, 30.0
"""How long an actor that is being started again is waited for, and one that is there for an answer."""


def away(error: BaseException) -> bool:
    """Whether an error says that an actor is gone, for a moment or for good, or frozen, and not what it answered."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):  # of an actor error in there too: it was there to say so
        return False
    return isinstance(error, ray.exceptions.RayActorError | ray.exceptions.GetTimeoutError)


def said(error: BaseException) -> BaseException:
    """What an actor raised itself, where Ray has wrapped it; any other error as it is."""
    import ray

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
    return error if cause is None else cause


def in_a_line(error: BaseException, length: int = 500) -> str:
    """An error's kind and what it says, without line ends; it may say nothing."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:length]


LOGS = "/tmp/ray/session_latest/logs of the node, or with `ray logs cluster`"
"""Where the last words of lost processes are."""


def answer(call: Callable[[], Any], limit_s: float = ANSWER_S) -> Any:
    """What an actor answers to a call.

    Raises:
        an error that is `away`: it is not there, or does not answer in time.
    """
    import ray

    return ray.get(call(), timeout=limit_s)


def reached(
    call: Callable[[], Any], *, away_s: float = AWAY_S, answer_s: float = ANSWER_S, pause_s: float = 0.5,
    given_up: threading.Event | None = None,
) -> Any:  # fmt: skip
    """What an actor answers, asked again while it is away: for calls only that may be made twice.

    Args:
        call: makes the call, such as `lambda: exchange.status.remote()`.
        given_up: once it is set, nobody wants the answer any more.

    Raises:
        an error that is `away`: it did not come back in time, or `given_up`.
    """
    import ray

    deadline = time.monotonic() + away_s
    while True:
        try:
            return answer(call, answer_s)
        except ray.exceptions.RayError as error:
            if not away(error) or time.monotonic() > deadline or (given_up is not None and given_up.is_set()):
                raise
        time.sleep(pause_s)
