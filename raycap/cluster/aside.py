"""Work in a thread of its own, while the main thread looks around: signals are handled there, and a look may end it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

Built = TypeVar("Built")


def in_a_thread(function: Callable[[], Built], look: Callable[[], None], every_s: float = 0.5) -> Built:
    """What a function returns or raises, or what `look` raises, which is called now and then."""
    made: Future[Built] = Future()

    def run() -> None:
        try:
            made.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            made.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    while True:
        with suppress(TimeoutError):  # now and then back here: signals are handled between two waits
            return made.result(timeout=every_s)
        if made.done():
            return made.result()
        look()
