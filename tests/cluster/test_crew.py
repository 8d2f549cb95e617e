"""The crew of rollout actors: when it is hopeless, and that what ends the run is told until it ends."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from raycap.cluster import crew
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
