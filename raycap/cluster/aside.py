"""Work in a thread of its own, while the main thread looks around: signals are handled there, and a look may end it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

Built = TypeVar("Built")


def in_a_thread(
    function: Callable[[], Built], look: Callable[[], None], every_s: float = 0.5, *,
    given_up: Callable[[threading.Thread, BaseException], None] = lambda thread, error: None,
) -> Built:  # fmt: skip
    """What a function returns or raises, or what `look` raises, which is called now and then.

    Args:
        given_up: called with the thread where `look`, or a signal, ends the wait for it.
    """
    made: Future[Built] = Future()

    def run() -> None:
        try:
            made.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            made.set_exception(error)

    thread = threading.Thread(target=run, name="aside", daemon=True)
    thread.start()
    try:
        while True:
            with suppress(TimeoutError):  # now and then back here: signals are handled between two waits
                return made.result(timeout=every_s)
            if made.done():
                return made.result()
            look()
    except BaseException as error:
        if not made.done():
            given_up(thread, error)
        raise
