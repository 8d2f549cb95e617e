"""Who waits for room says so and does not wait for ever; the learner's is kept; a crew makes room for a learner."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raycap.cluster import crew, room
from raycap.cluster.crew import RolloutCrew
from raycap.cluster.room import LearnersRoom, Patience, Seat, patiently, unplaced_groups, watched_wait
from raycap.errors import Stopped, WorkFailed

WAIT_S = 120.0


def until(what: Callable[[], bool]) -> bool:
    """Whether it comes true in time, on however busy a machine."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.2)
    return False


def test_what_finds_no_room_is_told_and_then_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", 0.1)
    monkeypatch.setattr(room, "free_room", lambda: "1 of 4 CPUs, 0 of 2 GPUs")
    answers = iter([False, False, True])

    def there(wait_s: float) -> bool:
        time.sleep(0.06)
        return next(answers, False)

    patiently("rewards.clip", there, 60.0)
    said = "rewards.clip has waited 0 s to start; free are 1 of 4 CPUs, 0 of 2 GPUs"
    assert capsys.readouterr().out.splitlines() == [said]
    with pytest.raises(WorkFailed, match=r"stall_timeout_s = 0.2: rewards.clip has not started; free are 1 of 4 CPUs"):
        patiently("rewards.clip", there, 0.2)


def test_patience_begins_anew_when_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_room", lambda: "0 of 4 CPUs, 0 of 2 GPUs")
    now = [0.0]
    patience = Patience(100.0, lambda: now[0])
    for seconds, who in ((50, "a"), (70, "a"), (90, ""), (140, "b"), (155, "b"), (189, "b")):
        now[0] = float(seconds)
        patience.look(who)
    assert [line.partition(" to start")[0] for line in capsys.readouterr().out.splitlines()] == [
        "a has waited 70 s", "b has waited 65 s",
    ]  # fmt: skip
    now[0] = 191.0
    with pytest.raises(WorkFailed, match=r"stall_timeout_s = 100.0: b has not started; free are 0 of 4 CPUs"):
        patience.look("b")


def test_the_learner_waits_as_long_as_its_groups_do() -> None:
    """Ray Train gives a group up after a minute and asks for another: at one look there may be none."""
    now, unplaced = [0.0], [False]
    learner = LearnersRoom(lambda: unplaced[0], lambda: now[0])
    found = []
    for waits in (False, True, True, False, True, False, False, True, True):
        now[0] += 5
        unplaced[0] = waits
        found.append(learner.waited_s())
    assert found == [0, 0, 5, 10, 15, 20, 0, 0, 5]


class Waiting:
    """A learner's wait for room, looked at twice a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "free_room", lambda: "1 of 4 CPUs, 0 of 2 GPUs")
        self.now, self.unplaced, self.spoke, self.why = 0.0, False, 0.0, ""
        learner = LearnersRoom(lambda: self.unplaced, lambda: self.now)
        self.look = watched_wait(learner, 180.0, silent_s=lambda: self.now - self.spoke, stop=lambda: self.why,
                                 clock=lambda: self.now)  # fmt: skip

    def passes(self, seconds: float) -> None:
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            self.look()


def test_a_learner_s_wait_for_room_is_told_each_minute_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often it has waited before, each time for less than it may: a long run meets many preemptions."""
    learner = Waiting(monkeypatch)
    for _ in range(10):
        learner.unplaced = True
        learner.passes(170)
        learner.unplaced = False
        learner.spoke = learner.now
        learner.passes(30)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"the learner has waited {s} s to start; free are 1 of 4 CPUs, 0 of 2 GPUs" for s in (60, 120)] * 10
    learner.unplaced = True
    with pytest.raises(WorkFailed, match=r"stall_timeout_s = 180\.0: the learner has not started; free are 1 of 4"):
        learner.passes(200)


def test_a_learner_that_speaks_has_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run of this job waits for its own."""
    learner = Waiting(monkeypatch)
    learner.unplaced = True
    for _ in range(100):
        learner.spoke = learner.now
        learner.passes(10)


def test_a_stop_is_heard_for_a_learner_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that works hears it itself, and writes a checkpoint first."""
    learner = Waiting(monkeypatch)
    learner.why = "SIGTERM"
    learner.passes(60)
    learner.unplaced = True
    with pytest.raises(Stopped, match=r"stopped while the learner waited for room: SIGTERM \(the same command goes on"):
        learner.passes(20)


class Group:
    """A placement group that finds no room."""

    def wait(self, wait_s: float) -> bool:
        return False


def test_who_waits_for_a_seat_hears_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = importlib.import_module("ray.util.placement_group")  # `ray.util` has a function of that name
    made, removed = Group(), list[Any]()
    monkeypatch.setattr(groups, "placement_group", lambda *_, **__: made)
    monkeypatch.setattr(groups, "remove_placement_group", removed.append)

    def stop() -> None:
        raise Stopped("planted")

    with pytest.raises(Stopped), Seat("the learner", [{"CPU": 1.0}], 3600.0, stop):
        pytest.fail("there is no room")
    assert removed == [made]


class FakeExchange:
    """What a crew asks and tells."""

    def __init__(self) -> None:
        self.silent: float | None = None
        self.lost: list[tuple[str, bool]] = []

    def hear(self, silent: float | None) -> None:
        self.silent = silent

    def status(self) -> dict[str, Any]:
        return {"learner_silent_s": self.silent, "counts": {"delivered": 0}, "lost": self.lost}

    def worker_lost(self, name: str, suspicious: bool = True) -> None:
        self.lost.append((name, suspicious))


class FakeWorker:
    """Works for ever."""

    def run(self, exchange: Any) -> dict[str, Any]:
        time.sleep(3600)
        return {"error": None}


class Scene:
    """A crew of three on a Ray of four CPUs, of which each takes one; what is waited for and how long is fast."""

    def __init__(self, ray: Any, monkeypatch: pytest.MonkeyPatch, at_once: int = 3) -> None:
        for name, value in (("LOOK_S", 0.3), ("YIELD_S", 0.5), ("PATIENCE_S", 1.0)):
            monkeypatch.setattr(crew, name, value)
        self.ray, self.unplaced = ray, False
        self.exchange = ray.remote(FakeExchange).options(num_cpus=0).remote()
        self.started: list[Any] = []
        self.crew = RolloutCrew(self.start, self.exchange, 3, at_once=at_once, room=LearnersRoom(lambda: self.unplaced))

    def start(self, name: str) -> Any:
        worker = self.ray.remote(FakeWorker).options(num_cpus=1, max_restarts=0).remote()
        self.started.append(worker)
        return worker

    def hear(self, silent: float | None) -> None:
        self.ray.get(self.exchange.hear.remote(silent))

    def lost(self) -> list[tuple[str, bool]]:
        return list(self.ray.get(self.exchange.status.remote())["lost"])


@pytest.fixture
def scene(ray_session: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(ray_session, monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        ray_session.kill(each.exchange)


@pytest.mark.ray
def test_a_crew_makes_room_for_the_learner_and_comes_back(scene: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here = scene()
    with here.crew:
        assert len(here.started) == 3
        here.hear(60.0)
        time.sleep(1.5)
        assert here.lost() == [], "a learner that is busy for long, and has its room"
        here.unplaced = True
        here.hear(0.0)
        time.sleep(1.5)
        assert here.lost() == [], "somebody else's group: this run's learner talks"
        here.hear(60.0)
        assert until(lambda: len(here.lost()) == 3)
        assert {suspicious for _, suspicious in here.lost()} == {False}, "their leases did not kill them"
        assert "the learner finds no room: 3 rollout workers make place until it is there" in capsys.readouterr().out
        time.sleep(1.0)
        assert len(here.started) == 3, "and none while it waits"
        here.unplaced = False
        here.hear(0.0)
        assert until(lambda: len(here.started) == 6)
    assert here.crew.losses == []


@pytest.mark.ray
def test_those_for_whom_there_is_no_room_yet_come_after_the_learner(
    scene: Any, capsys: pytest.CaptureFixture[str], ray_session: Any
) -> None:
    """One at once; the others when the learner has been heard, and who finds no room is spoken of."""
    here = scene(at_once=1)
    others = [ray_session.remote(FakeWorker).options(num_cpus=1).remote() for _ in range(2)]
    ray_session.get([other.__ray_ready__.remote() for other in others])
    with here.crew:
        time.sleep(1.5)
        assert len(here.started) == 1
        here.hear(0.0)
        assert until(lambda: len(here.started) == 3)
        said = ""

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return "rollout-2 has waited" in said and "2 of 3 rollout workers are there" in said

        assert until(told), said
        ray_session.kill(others.pop())
        assert until(lambda: all(worker.ready is None for worker in here.crew._at_work.values()))
    for other in others:
        ray_session.kill(other)


@pytest.mark.ray
def test_a_seat_keeps_room_for_the_learner(ray_session: Any) -> None:
    total = ray_session.cluster_resources()["CPU"]
    rival = ray_session.remote(FakeWorker).options(num_cpus=total)
    with Seat("the learner", [{"CPU": 1.0}] * 2, 60.0) as seat:
        taker = rival.remote()
        ready = taker.__ray_ready__.remote()
        assert not ray_session.wait([ready], timeout=2)[0], "the room is not given to others"
        seat.free()
        assert ray_session.wait([ready], timeout=WAIT_S)[0]
    with pytest.raises(WorkFailed, match="the learner has not started"), Seat("the learner", [{"CPU": 1.0}], 1.5):
        pass
    assert not unplaced_groups(), "it is not waited for any more"
    ray_session.kill(taker)


@pytest.mark.ray
def test_a_group_of_this_job_that_waits_is_seen(ray_session: Any) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    assert not unplaced_groups()
    group = placement_group([{"CPU": 100.0}])
    assert until(unplaced_groups)
    remove_placement_group(group)
    assert until(lambda: not unplaced_groups())
