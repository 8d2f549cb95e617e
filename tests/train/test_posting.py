"""Records on their way to a server that is slow, or away, or comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from raycap.train.posting import Dated, Posted


class Desk:
    """A server that fails the first `away` calls of `connect` or `send`, as said."""

    def __init__(self, away: int = 0, at: str = "connect") -> None:
        self.away, self.at = away, at
        self.calls: list[list[int]] = []
        self.when: list[float] = []
        self.ended: list[str] = []
        self.connected = 0

    def connect(self) -> Desk:
        self.connected += 1
        self._may_fail("connect")
        return self

    def send(self, records: Sequence[Dated]) -> None:
        self.when.append(time.monotonic())
        self._may_fail("send")
        self.calls.append([record["step"] for _, record in records])

    def close(self, status: str) -> None:
        self._may_fail("close")
        self.ended.append(status)

    def _may_fail(self, at: str) -> None:
        if at == self.at and self.away > 0:
            self.away -= 1
            raise ConnectionError("the server is away")

    @property
    def steps(self) -> list[int]:
        return [step for call in self.calls for step in call]


def posted(desk: Desk, **options: Any) -> tuple[Posted, list[Exception]]:
    warned: list[Exception] = []
    return Posted(desk.connect, warned.append, **{"every_s": 0.01, "retry_s": 0.01, **options}), warned


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_comes_within_a_few_seconds_is_one_call() -> None:
    desk = Desk()
    post, warned = posted(desk, every_s=0.6)
    post.log({"step": 1})
    until(lambda: desk.calls)
    for step in (2, 3, 4):
        post.log({"step": step})
    until(lambda: len(desk.calls) == 2)
    assert desk.calls == [[1], [2, 3, 4]]
    assert desk.when[1] - desk.when[0] > 0.5
    post.log({"step": 5})
    post.close("finished")  # not after another 0.6 s
    assert (desk.calls[2:], desk.ended, desk.connected, warned) == ([[5]], ["finished"], 1, [])


def test_the_learner_does_not_wait_for_a_server() -> None:
    """One that answers nothing: records are taken, and the end comes in its time."""
    never = threading.Event()

    def connect() -> Any:
        never.wait()

    post = Posted(connect, lambda error: None)
    began = time.monotonic()
    for step in range(100):
        post.log({"step": step})
    post.close("finished", wait_s=0.2)
    assert time.monotonic() - began < 2
    never.set()


def test_a_server_that_is_away_is_spoken_of_once_and_gets_all_when_it_is_back() -> None:
    for at in ("connect", "send"):
        desk = Desk(away=3, at=at)
        post, warned = posted(desk)
        for step in range(5):
            post.log({"step": step})
            time.sleep(0.005)
        until(lambda desk=desk: len(desk.steps) == 5)
        post.close("finished")
        assert desk.steps == [0, 1, 2, 3, 4]
        assert [str(error) for error in warned] == ["the server is away"]
        assert desk.ended == ["finished"]


def test_it_is_tried_again_no_oftener_than_it_may() -> None:
    desk = Desk(away=2, at="send")
    post, _ = posted(desk, retry_s=0.15)
    for step in range(60):
        post.log({"step": step})
        time.sleep(0.005)
    until(lambda: len(desk.steps) == 60)
    assert all(later - first > 0.14 for first, later in zip(desk.when[:2], desk.when[1:3], strict=True))
    post.close("finished")


def test_the_newest_are_kept_for_one_that_stays_away() -> None:
    desk = Desk(away=1)
    post, _ = posted(desk, retry_s=0.2, keep=3)
    for step in range(10):
        post.log({"step": step})
    post.close("stopped")  # one more try, at once
    assert desk.steps in ([7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9][-3:])
    assert desk.ended == ["stopped"]


def test_one_that_never_got_a_record_is_never_connected_to() -> None:
    desk = Desk()
    post, _ = posted(desk)
    post.close("failed")
    assert (desk.connected, desk.ended) == (0, [])


def test_an_end_that_fails_is_spoken_of_and_nothing_more() -> None:
    desk = Desk(away=9, at="close")
    post, warned = posted(desk)
    post.log({"step": 1})
    post.close("finished")
    assert [str(error) for error in warned] == ["the server is away"]
    assert desk.steps == [1]
