"""Calls to an actor that is away: asked again, for so long, and not when it answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from raycap.cluster import reaching
from raycap.cluster.reaching import away, in_a_line, reached, said
from raycap.errors import WorkFailed

GONE = ray.exceptions.ActorUnavailableError("away", None)
SAID = ray.exceptions.RayTaskError("f", "traceback", WorkFailed("said")).as_instanceof_cause()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """answers(a, b): what one call after the other brings, the last one again and again; a list of the calls made."""

    def plan(*brings: Any) -> list[Any]:
        made: list[Any] = []

        def answer(call: Callable[[], Any], limit_s: float) -> Any:
            made.append(call())
            brought = brings[min(len(made), len(brings)) - 1]
            if isinstance(brought, Exception):
                raise brought
            return brought

        monkeypatch.setattr(reaching, "answer", answer)
        return made

    return plan


def test_what_says_that_nobody_is_there() -> None:
    assert away(GONE)
    assert away(ray.exceptions.ActorDiedError())
    assert away(ray.exceptions.GetTimeoutError("frozen"))
    assert not away(SAID)
    another = ray.exceptions.RayTaskError("f", "traceback", ray.exceptions.ActorDiedError())
    assert not away(another.as_instanceof_cause()), "it was there to say that another one is gone"
    assert not away(ValueError())


def test_what_an_actor_said_itself() -> None:
    error = said(SAID)
    assert type(error) is WorkFailed
    assert str(error) == "said"
    assert said(GONE) is GONE
    plain = ValueError("x")
    assert said(plain) is plain


def test_an_error_in_a_line() -> None:
    assert in_a_line(ValueError("two\nlines  of it")) == "ValueError: two lines of it"
    assert in_a_line(ValueError()) == "ValueError: "
    assert in_a_line(ValueError("x" * 600), 20) == "ValueError: " + "x" * 8


def test_it_is_asked_again_until_it_is_back(answers: Any) -> None:
    made = answers(GONE, ray.exceptions.GetTimeoutError("frozen"), "there")
    assert reached(lambda: "asked", pause_s=0) == "there"
    assert made == ["asked"] * 3


def test_it_is_not_waited_for_longer_than_so_long(answers: Any) -> None:
    made = answers(GONE)
    began = time.monotonic()
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        reached(lambda: None, away_s=0.3, pause_s=0.05)
    assert time.monotonic() - began >= 0.3
    assert len(made) > 1


def test_what_it_answered_is_not_asked_again(answers: Any) -> None:
    made = answers(SAID)
    with pytest.raises(WorkFailed):
        reached(lambda: None, pause_s=0)
    assert len(made) == 1


def test_nobody_asks_who_no_longer_wants_to_know(answers: Any) -> None:
    made = answers(GONE)
    over = threading.Event()
    over.set()
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        reached(lambda: None, pause_s=0, given_up=over)
    assert len(made) == 1
