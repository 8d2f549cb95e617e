"""SIGTERM and Ctrl-C while a stage trains: a checkpoint first, then the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raycap.train.stopping import ask_to_stop, forget_stop

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping_at_signals(folder: Path) -> Iterator[None]:
    """Inside, the first signal asks the stage in `folder` to write a checkpoint and end; the second ends this process
    as if Ctrl-C had been pressed.

    `ray job stop` sends SIGTERM, and SIGKILL after 3 seconds (RAY_JOB_STOP_WAIT_TIME_S on the head): what was learned
    since the last checkpoint is lost when a step takes longer than that.
    """
    forget_stop(folder)
    if threading.current_thread() is not threading.main_thread():  # only there signals can be caught
        yield
        return
    asked = False

    def at_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with suppress(OSError):  # the storage may be what fails
            ask_to_stop(folder, signal.Signals(number).name)
        print("stopping after this step, with a checkpoint (once more: at once)", flush=True)

    before = {number: signal.signal(number, at_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(OSError):
            forget_stop(folder)
