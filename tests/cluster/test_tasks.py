"""Tasks that find no room: it is said, and ends; one that runs may keep the others' room for as long as it likes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from raycap.cluster import room, tasks
from raycap.cluster.tasks import gather
from raycap.errors import DataError, WorkFailed


class FakeTask:
    """A reference and what becomes of it: it begins and ends at given looks of the driver, if ever."""

    def __init__(self, name: str, begins: float, ends: float, gives: Any = None) -> None:
        self.name, self.begins, self.ends, self.gives = name, begins, ends, gives

    def task_id(self) -> FakeTask:
        return self

    def hex(self) -> str:
        return self.name


Give = Callable[..., dict[str, FakeTask]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Tasks on a Ray that is not there; a look takes a hundredth of a second, and patience a twentieth."""
    at, known = [0], dict[str, FakeTask]()

    def wait(refs: list[FakeTask], num_returns: int, timeout: float) -> tuple[list[FakeTask], list[FakeTask]]:
        at[0] += 1
        time.sleep(0.01)
        done = [ref for ref in refs if ref.ends <= at[0]][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def get(ref: FakeTask) -> Any:
        if isinstance(ref.gives, Exception):
            raise ray.exceptions.RayTaskError("f", "traceback", ref.gives)
        return ref.gives

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(tasks, "has_begun", lambda mark: known[mark].begins <= at[0])
    monkeypatch.setattr(room, "free_room", lambda: "0 of 4 CPUs, 0 of 0 GPUs")
    monkeypatch.setattr(room, "PATIENCE_S", 0.05)

    def give(*each: FakeTask) -> dict[str, FakeTask]:
        known.update({task.name: task for task in each})
        return dict(known)

    return give


NEVER = float("inf")


def test_results_come_by_name_and_errors_come_through(given: Give) -> None:
    ticks: list[int] = []
    refs = given(FakeTask("a", 1, 4, "A"), FakeTask("b", 1, 2, "B"))
    assert gather(refs, lambda: ticks.append(1)) == {"a": "A", "b": "B"}
    assert len(ticks) == 4
    with pytest.raises(DataError, match="broken"):
        gather(given(FakeTask("c", 1, 1, DataError("broken"))))
    with pytest.raises(WorkFailed, match="task = 'd': KeyError: 'x'"):
        gather({"d": given(FakeTask("d", 1, 1, KeyError("x")))["d"]})


def test_tasks_for_which_there_is_no_room_are_told_of_and_end(given: Give, capsys: pytest.CaptureFixture[str]) -> None:
    refs = given(FakeTask("scst", NEVER, NEVER), FakeTask("mle", NEVER, NEVER))
    with pytest.raises(WorkFailed) as ended:
        gather(refs, limit_s=0.2)
    assert str(ended.value).startswith(
        "cluster.stall_timeout_s = 0.2: each of 2 tasks (scst, mle) has not started; free"
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "each of 2 tasks (scst, mle) has waited 0 s to start; free are 0 of 4 CPUs, 0 of 0 GPUs"


def test_who_waits_for_one_that_runs_is_patient(given: Give, capsys: pytest.CaptureFixture[str]) -> None:
    refs = given(FakeTask("a", 2, 25, 1), FakeTask("b", 26, 27, 2))
    assert gather(refs, limit_s=0.1) == {"a": 1, "b": 2}
    assert not capsys.readouterr().out


def sleep(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.ray
def test_a_task_says_that_it_has_begun(ray_session: Any) -> None:
    free, total = ray_session.available_resources, ray_session.cluster_resources()["CPU"]
    slow = tasks.task(sleep, num_cpus=0.1)
    runs, waits = slow(20), tasks.task(sleep, num_cpus=total + 1)(0)
    deadline = time.monotonic() + 120
    while not tasks.has_begun(runs.task_id().hex()):
        assert time.monotonic() < deadline, free()
        time.sleep(0.2)
    assert not tasks.has_begun(waits.task_id().hex())
    ray_session.cancel(waits)
    ray_session.cancel(runs, force=True)
