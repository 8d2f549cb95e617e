"""The crew of rollout actors: who is hired and sent home, when it is hopeless, that what ends the run is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raycap.cluster import crew
from raycap.cluster.absence import Absence
from raycap.cluster.crew import RolloutCrew
from raycap.errors import RaycapError, RewardError


class Worker:
    """Ends at once, with an error of ours."""

    def run(self, exchange: Any) -> dict[str, Any]:
        return {"seconds": {}, "error": RewardError("planted", key="rewards.mine")}


class Hub:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def fail(self, error: RaycapError) -> None:
        self.told.append(str(error))

    def heard(self) -> tuple[int, list[str]]:
        return os.getpid(), self.told


@pytest.mark.ray
def test_what_ends_the_run_is_told_to_every_exchange(ray_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to one that is started anew after the first had heard of it."""
    monkeypatch.setattr(crew, "TELL_S", 0.3)
    hub = ray_session.remote(Hub).options(num_cpus=0, max_restarts=-1).remote()
    ray_session.get(hub.heard.remote())
    worker = ray_session.remote(Worker).options(num_cpus=0)
    told: dict[int, list[str]] = {}  # by process
    with RolloutCrew(lambda name: worker.remote(), hub, 1):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(told) < 2:
            process, heard = _heard(ray_session, hub)
            if heard and process not in told:
                told[process] = heard
                ray_session.kill(hub, no_restart=False)
            time.sleep(0.1)
    ray_session.kill(hub)
    assert [set(heard) for heard in told.values()] == [{"rewards.mine: planted"}] * 2


def _heard(ray: Any, hub: Any) -> tuple[int, list[str]]:
    try:
        process, heard = ray.get(hub.heard.remote(), timeout=30)
    except ray.exceptions.RayActorError:
        return 0, []
    return process, heard


def test_deaths_with_nothing_between_them_are_hopeless() -> None:
    some = RolloutCrew(lambda name: None, None, size=2, hopeless_after=2)
    assert [some.is_hopeless(0) for _ in range(4)] == [False, False, False, True]
    assert not some.is_hopeless(1), "a lease was delivered"
    assert [some.is_hopeless(1) for _ in range(3)] == [False, False, True]


def test_a_lease_may_be_set_aside_before_it_is_hopeless() -> None:
    one = RolloutCrew(lambda name: None, None, size=1, hopeless_after=2, quarantine_after=7)
    assert [one.is_hopeless(0) for _ in range(8)] == [False] * 7 + [True]


class Actor:
    """A rollout actor that has started, or waits for a place."""

    def __init__(self, name: str) -> None:
        self.name, self.there, self.ended, self.brings = name, True, False, {"error": None}
        self.__ray_ready__ = SimpleNamespace(remote=lambda: ("ready", self))
        self.run = SimpleNamespace(remote=lambda exchange: ("run", self))

    def dies(self, error: Exception) -> None:
        self.ended, self.brings = True, error  # type: ignore[assignment]


class FakeExchange:
    """Notes what it is told, and counts as it is told to."""

    def __init__(self) -> None:
        self.counts, self.told, self.failed = dict[str, int](), list[tuple[str, bool]](), list[str]()
        self.silent: float | None = 0.0

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given, **named: getattr(self, f"on_{name}")(*given, **named))

    def on_status(self) -> dict[str, Any]:
        return {"learner_silent_s": self.silent, "counts": dict(self.counts)}

    def on_worker_lost(self, name: str, suspicious: bool = True) -> None:
        self.told.append((name, suspicious))

    def on_fail(self, error: RaycapError) -> None:
        self.failed.append(str(error))


class Scene:
    """A crew in this process, with a Ray of its own making."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int, rewards: Absence | None = None) -> None:
        self.now, self.exchange, self.started = 1000.0, FakeExchange(), list[Actor]()
        monkeypatch.setattr(crew.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(crew, "answer", lambda call: call())
        monkeypatch.setattr(crew, "reached", lambda call, given_up: call())
        monkeypatch.setattr(crew, "free_room", lambda: "0 of 8 CPUs")
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "kill", self.kill)
        self.killed = list[str]()
        self.crew = RolloutCrew(self.start, self.exchange, size, rewards=rewards, quarantine_after=3)

    def start(self, name: str) -> Actor:
        self.started.append(Actor(name))
        return self.started[-1]

    def wait(self, calls: Sequence[Any], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        done = [(kind, actor) for kind, actor in calls if (actor.ended if kind == "run" else actor.there)]
        return done[:num_returns], []

    def get(self, call: Any) -> Any:
        if isinstance(call[1].brings, Exception):
            raise call[1].brings
        return call[1].brings

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor.name)

    def passes(self, seconds: float = 5.0) -> None:
        self.now += seconds
        self.crew._keep_up()

    @property
    def names(self) -> list[str]:
        return [worker.name for worker in self.crew._at_work.values()]


LOST = ray.exceptions.ActorDiedError()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    return lambda size, rewards=None: Scene(monkeypatch, size, rewards)


def test_neighbours_that_kill_their_workers_are_set_aside_and_end_nothing(scene: Any) -> None:
    """By hand, one worker: three die of a lease, which is set aside, two of the next one, and nothing is delivered."""
    here = scene(1)
    here.crew._hire(1)
    for settled in (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3):
        here.exchange.counts = {"quarantined": settled}
        here.started[-1].dies(LOST)
        here.passes()
    assert len(here.started) == 12
    assert here.crew._fatal is None
    for _ in range(3):
        here.started[-1].dies(LOST)
        here.passes()
    assert str(here.crew._fatal).startswith(
        "cluster.rollout_workers = 1: rollout workers died 5 times with nothing delivered or set aside between, the "
        "last one of ActorDiedError: The actor died unexpectedly"
    )
    assert "/tmp/ray/session_latest/logs" in str(here.crew._fatal)


def test_a_loss_that_says_nothing_is_a_loss(scene: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Silent(ray.exceptions.RayError):  # type: ignore[misc]
        pass

    here = scene(1)
    here.crew._hire(1)
    here.started[-1].dies(Silent())
    here.passes()
    assert here.names == ["rollout-1"]
    assert "rollout-0 was lost (Silent: ); another takes its place" in capsys.readouterr().out


def watched(here: Scene, until: Callable[[], bool]) -> None:
    """Its thread's work, until so."""
    deadline = time.perf_counter() + 20
    here.crew._stop.wait = lambda s: None  # type: ignore[method-assign, assignment]
    keep_up = here.crew._keep_up

    def kept_up() -> None:
        here.now += 5
        keep_up()

    here.crew._keep_up = kept_up  # type: ignore[method-assign]
    here.crew._stop.is_set = lambda: until() or time.perf_counter() > deadline  # type: ignore[method-assign]
    here.crew._watch()
    assert until()


def test_what_the_crew_stumbles_over_ends_the_run_and_is_told_to_the_end(scene: Any) -> None:
    """An error in its thread would end it, and nobody would replace a worker any more."""
    here = scene(2)

    def cannot(name: str) -> Any:
        here.now += 5  # it is told every few seconds
        raise ValueError("planted")

    here.crew.start = cannot
    told = "worker: the crew of rollout workers failed: ValueError: planted (this is a fault of raycap's;"

    def often() -> bool:
        here.now += 1
        return len(here.exchange.failed) > 2

    watched(here, often)
    assert all(each.startswith(told) for each in here.exchange.failed)


def test_an_error_of_ray_s_is_survived(scene: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here = scene(1)
    start, errors = here.crew.start, [ray.exceptions.RaySystemError("GCS is away")] * 2

    def hiccups(name: str) -> Any:
        if errors:
            raise errors.pop()
        return start(name)

    here.crew.start = hiccups
    watched(here, lambda: bool(here.names))
    assert here.crew._fatal is None
    assert (
        capsys.readouterr().out.count("the crew of rollout workers goes on after RaySystemError: System error: GCS")
        == 2
    )


class Rewards(Absence):
    """What is missed is said by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.missed = dict[str, float]()

    def missing(self) -> dict[str, float]:
        return self.missed


def test_a_reward_that_lost_its_place_is_given_a_worker_s(scene: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Two nodes are full, and that of a reward and a worker dies: the worker's replacement and the reward actor wait
    for what is left, and with one worker less the run goes on."""
    rewards = Rewards()
    here = scene(4, rewards)
    here.crew._hire(4)
    here.passes()
    here.started[1].dies(LOST)
    here.passes()
    assert here.names == ["rollout-0", "rollout-2", "rollout-3", "rollout-4"]
    here.started[4].there = False  # as the place of the one before is gone
    rewards.missed = {"clip": 5.0}
    here.passes()
    assert here.killed == []
    rewards.missed = {"clip": 10.0, "cider": 2.0}
    here.passes()
    assert here.killed == ["rollout-4"], "the one that waits itself"
    assert here.exchange.told[-1] == ("rollout-4", False)
    assert "rewards.clip finds no room: rollout-4 makes place until it is there" in capsys.readouterr().out
    here.passes()
    assert here.killed == ["rollout-4"], "the reward may be on its way"
    here.passes()
    assert here.killed == ["rollout-4", "rollout-3"]
    here.started[2].dies(LOST)
    here.passes()
    assert here.names == ["rollout-0"], "nobody is hired meanwhile"
    for _ in range(5):
        here.passes()
    assert here.names == ["rollout-0"], "the last one stays"
    rewards.missed = {}
    here.passes()
    assert here.names == ["rollout-0", "rollout-5", "rollout-6", "rollout-7"]
    assert here.crew._fatal is None


def test_who_has_lost_its_place_is_spoken_of_each_minute(scene: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Away:
        def __init__(self) -> None:
            self.__ray_ready__ = SimpleNamespace(remote=lambda: "call")

    now = [0.0]
    here = scene(1, Absence([("clip", Away())], lambda call: False, lambda: now[0]))
    here.crew._hire(1)
    for _ in range(30):
        now[0] += 5
        here.passes()
    said = [line for line in capsys.readouterr().out.splitlines() if "has waited" in line]
    assert said == [f"rewards.clip has waited {s} s to start again; free are 0 of 8 CPUs" for s in (60, 120)]
    assert here.names == ["rollout-0"]


def test_the_learner_comes_before_the_rewards(scene: Any) -> None:
    rewards = Rewards()
    here = scene(3, rewards)
    here.crew._hire(3)
    here.crew.room = SimpleNamespace(waited_s=lambda: 20.0)  # type: ignore[assignment]
    here.exchange.silent, rewards.missed = 60.0, {"clip": 30.0}
    here.passes()
    assert here.killed == ["rollout-0", "rollout-1", "rollout-2"]
