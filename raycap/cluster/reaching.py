"""Calls to an actor that may be away for a while: Ray starts it again, and the call is made once more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

AWAY_S = 120.0
"""How long an actor that is being started again is waited for."""


def away(error: BaseException) -> bool:
    """Whether an error says that an actor is gone, for a moment or for good, and not what it answered."""
    import ray

    return isinstance(error, ray.exceptions.RayActorError) and not isinstance(error, ray.exceptions.RayTaskError)


def reached(call: Callable[[], Any], limit_s: float = AWAY_S, pause_s: float = 0.5) -> Any:
    """What an actor answers. For calls only that may be made twice.

    Args:
        call: makes the call, such as `lambda: exchange.status.remote()`.

    Raises:
        ray.exceptions.RayActorError: it did not come back.
    """
    import ray

    deadline = time.monotonic() + limit_s
    while True:
        try:
            return ray.get(call())
        except ray.exceptions.RayActorError as error:
            if not away(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
