"""Work aside: what it gives and raises comes through, and a look may end the wait for it."""

from __future__ import annotations

import threading

import pytest

from raycap.cluster.aside import in_a_thread
from raycap.errors import DataError, WorkFailed


def test_what_it_makes_and_what_it_raises_comes_through() -> None:
    looks: list[str] = []
    let = threading.Event()

    def look() -> None:
        looks.append(threading.current_thread().name)
        let.set()

    assert in_a_thread(lambda: let.wait(60), look, every_s=0.01) is True
    assert set(looks) == {threading.current_thread().name}, "looks are the waiting thread's"

    def fails() -> None:
        raise DataError("broken")

    def times_out() -> None:
        raise TimeoutError("its own")

    with pytest.raises(DataError, match="broken"):
        in_a_thread(fails, look)
    with pytest.raises(TimeoutError, match="its own"):
        in_a_thread(times_out, look)


def test_a_look_ends_the_wait() -> None:
    never = threading.Event()

    def look() -> None:
        raise WorkFailed("no room")

    with pytest.raises(WorkFailed, match="no room"):
        in_a_thread(never.wait, look, every_s=0.01)
    never.set()
