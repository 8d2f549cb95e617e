"""A reward component in its process, and a pool whose actors cannot start; no cluster is needed for either."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from raycap.cluster import passing
from raycap.cluster.reward_pool import RewardPools, RewardWorker
from raycap.errors import RecipeError, WorkFailed
from raycap.rewards.context import ContextSpec
from raycap.types import ComponentScores, Generation, Lease, Prompt

LATE, REFUSES = "tests.cluster.faulty:Late", "tests.cluster.faulty:Refuses"
SPEC = ContextSpec(recipe=None, prepared="", labelled="", document_frequency="")  # type: ignore[arg-type]
LEASE = Lease(0, 0, (Prompt("a.jpg", 0),))
MADE = Generation(np.zeros((1, 2), np.int64), np.full(1, 2), np.zeros((1, 2), np.float32), np.ones(1, bool), ("a dog",),
                  ("dogs",), np.ones(1, bool), 1)  # fmt: skip
SCORES = ComponentScores(np.ones((1, 1), np.float32), np.ones(1, np.float32))


def worker(source: str, **options: Any) -> RewardWorker:
    return RewardWorker("mine", SPEC, options, source, 2)


@pytest.fixture
def twice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried twice more, without a pause."""
    monkeypatch.setattr(passing, "PAUSES_S", (0.0, 0.0))


@pytest.mark.usefixtures("twice_at_once")
@pytest.mark.parametrize("fault", ["storage", "memory"])
def test_a_component_that_could_not_be_built_for_a_moment_is_built(fault: str, tmp_path: Path) -> None:
    """As where a CLIP's process was killed and its memory is not free yet."""
    made = worker(LATE, folder=str(tmp_path), times=2, fault=fault)
    assert made.ready() == "late"
    assert made.score(LEASE.image_ids, MADE).rewards.tolist() == [[1.0]]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("twice_at_once")
def test_one_that_cannot_be_built_says_why_and_does_not_ask_to_be_mended(tmp_path: Path) -> None:
    made = worker(LATE, folder=str(tmp_path), times=9)
    for ask in (made.ready, lambda: made.score(LEASE.image_ids, MADE)):
        with pytest.raises(WorkFailed, match=r"rewards\.mine: could not be built, several times over") as failed:
            ask()
        assert "Stale file handle" in str(failed.value)
        assert "mend" not in str(failed.value.remedy)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_it_refuses_is_said_to_who_asks() -> None:
    made = worker(REFUSES)
    for ask in (made.ready, lambda: made.score(LEASE.image_ids, MADE)):
        with pytest.raises(RecipeError, match="planted"):
            ask()


def test_its_process_is_there_before_it_is_built(tmp_path: Path) -> None:
    """So that an actor without a place is told apart from one that loads a model."""
    began = time.perf_counter()
    made = worker(LATE, folder=str(tmp_path), times=1)
    assert time.perf_counter() - began < passing.PAUSES_S[0]
    assert made.ready() == "late"


def test_it_scores_with_its_own_torch_threads(tmp_path: Path) -> None:
    """At lag 0 the last bit may hang on them."""
    (tmp_path / "times").mkdir()
    made = worker(LATE, folder=str(tmp_path / "times"), times=0, threads=str(tmp_path / "threads"))
    made.score(LEASE.image_ids, MADE)
    assert (tmp_path / "threads").read_text() == "2"


class Call:
    def __init__(self, brings: Any) -> None:
        self.brings = brings


class Actor:
    """Brings the same, whatever is asked of it."""

    def __init__(self, brings: Any) -> None:
        self.brings, self.asked = brings, 0
        self.score = self.ready = SimpleNamespace(remote=self._call)

    def _call(self, *given: Any) -> Call:
        self.asked += 1
        return Call(self.brings)


@pytest.fixture(autouse=True)
def _ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(call: Call) -> Any:
        if isinstance(call.brings, Exception):
            raise call.brings
        return call.brings

    def wait(calls: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return list(calls)[:num_returns], []

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)


def never_started() -> ray.exceptions.ActorDiedError:
    return ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("__init__", "no module named mine", ImportError()))


def pool(*actors: Actor) -> RewardPools:
    pools = RewardPools({"mine": actors})
    pools._first = 0
    return pools


def test_an_actor_that_never_started_did_not_die_of_a_batch() -> None:
    with pytest.raises(WorkFailed, match=r"rewards\.mine: its actor could not start: .*no module named mine") as failed:
        pool(Actor(never_started())).score(LEASE, MADE)
    assert "a.jpg" not in str(failed.value)
    assert "/tmp/ray/session_latest/logs" in str(failed.value.remedy)


def test_the_others_do_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    dead, alive = Actor(never_started()), Actor(SCORES)
    pools = pool(dead, alive)
    for _ in range(6):
        assert pools.score(LEASE, MADE) == {"mine": SCORES}
    assert dead.asked == 1
    assert "its pool has 1 left" in capsys.readouterr().out


def test_five_deaths_are_the_batch_s() -> None:
    with pytest.raises(WorkFailed, match=r"actors died 5 times of a batch that begins with a\.jpg, the last one of A"):
        pool(Actor(ray.exceptions.ActorDiedError())).score(LEASE, MADE)
