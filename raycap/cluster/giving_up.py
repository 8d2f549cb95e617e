"""A run of Ray Train that its driver no longer waits for is ended: a learner that is left behind would go on writing
checkpoints beside the one that the same command starts.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any

ABORT_S, END_S = 6.0, 30.0
"""What a controller has to end its ranks, and a run to be over."""


def end_run_of(thread: threading.Thread, abort_s: float = ABORT_S, limit_s: float = END_S) -> None:
    """End the run that a thread waits for in `fit`: its ranks, then its controller, which makes `fit` raise there.

    Args:
        abort_s: that the controller has to end its ranks itself; they go with it in any case, a moment later.
        limit_s: until it is left to itself.
    """
    import ray

    deadline = time.monotonic() + limit_s
    while thread.is_alive():
        for controller in controllers_of(thread):
            with suppress(ray.exceptions.RayError):
                # as Ray Train does at Ctrl-C; while it asks for room it does not hear
                ray.wait([controller.abort.remote()], timeout=abort_s)
                ray.kill(controller)
        thread.join(0.5)
        if thread.is_alive() and time.monotonic() > deadline:
            print("Ray Train's run could not be ended: its learner may be at work still", flush=True)
            return


def controllers_of(thread: threading.Thread) -> list[Any]:
    """Handles of the controllers that a thread's calls hold. Ray Train gives its own to nobody, and an actor without a
    name cannot be found otherwise."""
    import ray

    frame, found = sys._current_frames().get(thread.ident or 0), list[Any]()
    while frame is not None:
        held = [value for value in frame.f_locals.values() if isinstance(value, ray.actor.ActorHandle)]
        found += [actor for actor in held if hasattr(actor, "abort")]
        frame = frame.f_back
    return found
