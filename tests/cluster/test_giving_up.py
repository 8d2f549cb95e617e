"""A driver that gives up ends the run of Ray Train that it waited for."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raycap.cluster import giving_up, train_job
from raycap.cluster.aside import in_a_thread
from raycap.cluster.giving_up import controllers_of, end_run_of
from raycap.errors import Stopped


class Handle(ray.actor.ActorHandle):  # type: ignore[misc]
    """Of an actor that was never made."""

    def __init__(self, **methods: Any) -> None:
        self._ray_actor_id, self._ray_is_cross_language, self._method_shells = id(self), False, {}
        for name, method in methods.items():
            setattr(self, name, SimpleNamespace(remote=method))

    def __del__(self) -> None:
        """Nobody counts it."""


class Run:
    """What `fit` does: it makes a controller and waits for it, as long as it lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deaf: bool = False) -> None:
        self.waits, self.over, self.said = threading.Event(), threading.Event(), list[str]()
        self.deaf = deaf
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "kill", self.kill)

    def fit(self) -> str:
        controller = Handle(run=lambda: None, abort=lambda: "abort")
        self.killed = controller
        return self._wait_for(controller)

    def _wait_for(self, controller: Any) -> str:
        bystander = Handle(run=lambda: None)
        self.waits.set()
        while not self.over.wait(0.01):
            continue
        raise ray.exceptions.ActorDiedError if bystander is not controller else AssertionError

    def started(self) -> threading.Thread:
        """A thread that waits in it."""

        def fit() -> None:
            with suppress(ray.exceptions.ActorDiedError):
                self.fit()

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        assert self.waits.wait(60)
        return thread

    def wait(self, calls: list[Any], timeout: float) -> None:
        self.said.append(f"{calls[0]} {timeout:g}")

    def kill(self, actor: Any) -> None:
        assert actor is self.killed
        self.said.append("kill")
        if not self.deaf:
            self.over.set()


def test_its_controller_is_found_in_the_hands_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    thread = run.started()
    assert set(map(id, controllers_of(thread))) == {id(run.killed)}
    end_run_of(thread)
    assert not thread.is_alive()
    assert run.said[:2] == [f"abort {giving_up.ABORT_S:g}", "kill"]
    assert controllers_of(thread) == []


def test_one_that_cannot_be_ended_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(monkeypatch, deaf=True)
    thread = run.started()
    end_run_of(thread, limit_s=0.1)
    assert "could not be ended: its learner may be at work still" in capsys.readouterr().out
    run.over.set()
    thread.join(60)


@pytest.mark.parametrize(("raised", "abort_s"), [(Stopped("planted"), giving_up.ABORT_S), (KeyboardInterrupt(), 0.0)])
def test_whatever_ends_the_driver_s_wait_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, abort_s: float
) -> None:
    run = Run(monkeypatch)

    def look() -> None:
        if run.waits.is_set():
            raise raised

    with pytest.raises(type(raised)):
        in_a_thread(run.fit, look, given_up=train_job._end_run)
    assert run.said[:2] == [f"abort {abort_s:g}", "kill"]


def test_a_run_that_ended_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_up, "end_run_of", lambda *_: pytest.fail("it was over"))
    monkeypatch.setattr(train_job, "end_run_of", lambda *_: pytest.fail("it was over"))
    assert in_a_thread(lambda: 7, lambda: None, given_up=train_job._end_run) == 7

    def fail() -> None:
        time.sleep(0.6)
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        in_a_thread(fail, lambda: None, given_up=train_job._end_run)
