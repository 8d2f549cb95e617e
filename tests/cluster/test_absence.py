"""Who has lost its place: told apart from who is busy, and from who has not started yet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raycap.cluster.absence import Absence


class Actor:
    """What it does with a call: `here` answers it, `away` fails it, `busy` does not answer."""

    def __init__(self, at: str = "here") -> None:
        self.at, self.calls = at, 0
        self.__ray_ready__ = SimpleNamespace(remote=self._call)

    def _call(self) -> Any:
        self.calls += 1
        return lambda: {"here": True, "away": False, "busy": None}[self.at]


class Scene:
    """Actors that are looked at every five seconds."""

    def __init__(self, **actors: list[Actor]) -> None:
        self.now = 0.0
        pairs = [(name, actor) for name, of_name in actors.items() for actor in of_name]
        self.absence = Absence(pairs, lambda call: call(), lambda: self.now)

    def looks(self, count: int) -> dict[str, float]:
        for _ in range(count):
            self.now += 5
            self.absence.look()
        return self.absence.missing()


def test_one_that_lost_its_place_is_missed_until_it_is_back() -> None:
    clip, cider = Actor(), Actor()
    scene = Scene(clip=[clip], cider=[cider])
    assert scene.looks(3) == {}
    clip.at = "away"
    assert scene.looks(1) == {"clip": 0}
    assert scene.looks(4) == {"clip": 20}
    clip.at = "busy"
    assert scene.looks(1) == {}, "it is there, and has taken the call"
    clip.at = "here"
    assert scene.looks(2) == {}
    clip.at = "away"
    assert scene.looks(2) == {"clip": 5}, "counted anew"


def test_who_is_busy_or_has_not_started_is_asked_once_and_not_missed() -> None:
    """An actor that has never been there holds its calls: who waits for it to start speaks of it."""
    new, other = Actor("busy"), Actor()
    scene = Scene(clip=[new], cider=[other])
    assert scene.looks(10) == {}
    assert (new.calls, other.calls) == (1, 10)


def test_a_component_with_somebody_there_is_not_missed() -> None:
    one, two = Actor(), Actor()
    scene = Scene(clip=[one, two])
    one.at = "away"
    assert scene.looks(4) == {}
    two.at = "away"
    assert scene.looks(3) == {"clip": 10}, "since the last one went"
    one.at = "here"
    assert scene.looks(1) == {}


def test_each_is_spoken_of_each_minute() -> None:
    one, two = Actor(), Actor()
    scene = Scene(clip=[one, two])
    scene.looks(2)
    one.at = "away"
    said = []
    for _ in range(40):
        scene.looks(1)
        said += scene.absence.untold(60.0)
    assert said == [("clip", 60), ("clip", 120), ("clip", 180)]
    one.at = "here"
    scene.looks(1)
    assert scene.absence.untold(60.0) == []
