"""Ranks set up together: one that cannot takes the others along, instead of leaving them to wait for it. What a rank's
error is to Ray Train. And where their log goes besides: under which name, and how it is told of the end."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from raycap.cluster import train_job
from raycap.cluster.retrying import EndAtOnce
from raycap.cluster.train_job import _guarded, rank_journal
from raycap.errors import CheckpointError, RaycapError, Stopped, WorkFailed
from raycap.recipe import LoggingRecipe
from raycap.train.group import Alone, built_together
from raycap.train.sinks import Sink
from tests.train.conftest import ThreadGroup


def on_two_ranks(*builds: Callable[[], Any]) -> list[Any]:
    """What `built_together` gave each rank: its value, or its error."""
    barrier, board = threading.Barrier(2, timeout=60), [None, None]

    def rank(number: int) -> Any:
        try:
            return built_together(ThreadGroup(number, 2, barrier, board), builds[number])
        except RaycapError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


def fails(error: RaycapError) -> Callable[[], Any]:
    def build() -> Any:
        raise error

    return build


def test_what_is_built_on_all_ranks_is_given_back() -> None:
    assert on_two_ranks(lambda: 7, lambda: 8) == [7, 8]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_rank_ends_all_in_its_own_kind(failing: int) -> None:
    """The driver hears of rank 0's only: a checkpoint that cannot be read is exit 2 there too, with key and remedy."""
    error = CheckpointError("the file is gone", key="checkpoint", value="x", remedy="take another one")
    builds = [lambda: 7, lambda: 7]
    builds[failing] = fails(error)
    for raised in on_two_ranks(*builds):
        assert type(raised) is CheckpointError
        assert (raised.key, raised.value, raised.remedy, raised.exit_code) == ("checkpoint", "x", "take another one", 2)
        assert str(raised) == str(error)


def test_each_rank_raises_its_own_error() -> None:
    errors = [WorkFailed("here"), CheckpointError("there")]
    assert on_two_ranks(*map(fails, errors)) == errors


def test_a_rank_that_could_not_read_its_checkpoint_is_started_again(tmp_path: Path) -> None:
    """Nothing is wrong with the checkpoint: it raises what ends no run, because one of ours would."""

    def loop(config: dict[str, Any]) -> dict[str, Any]:
        stale = OSError(errno.ESTALE, "Stale file handle")
        raise CheckpointError("the storage does not answer", key="checkpoint", value="step-000007") from stale

    with pytest.raises(OSError, match="the storage did not answer: checkpoint = 'step-000007'") as raised:
        _guarded(loop)({"threads": 1, "folder": str(tmp_path)})
    EndAtOnce().after_exception(None, {0: raised.value})


class Board:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[int] = []
        self.ended: list[str] = []

    def sinks_of(self, recipe: LoggingRecipe, folder: Path, run: str) -> list[Sink]:
        self.names.append(run)
        return [Sink("Board", "look", lambda record: self.steps.append(record["step"]), self.ended.append)]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    monkeypatch.setattr(train_job, "sinks_of", made.sinks_of)
    monkeypatch.setattr(train_job, "ray_metrics", lambda run: Sink(run, "", lambda record: None))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: 1))
    return made


def loop_that(ends: Callable[[], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A training loop of one step."""

    def loop(config: dict[str, Any]) -> dict[str, Any]:
        about = {"run": "flickr8k", "seed": 2, "stage": "scst"}
        journal = rank_journal(config["folder"], Alone(), keep=1, about=about, logging=LoggingRecipe(),
                               closing=config["closing"])  # fmt: skip
        journal.log({"step": 1})
        return {"value": ends()}

    return loop


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (lambda: 7, "finished"),
        (fails(Stopped("somebody asked")), "stopped"),
        (fails(WorkFailed("it collapsed")), "failed"),
    ],
)
def test_where_else_the_log_goes_hears_how_a_stage_ended(
    board: Board, tmp_path: Path, ends: Callable[[], Any], status: str
) -> None:
    folder = tmp_path / "seed-2" / "scst"
    answer = _guarded(loop_that(ends))({"threads": 1, "folder": str(folder)})
    assert ("result" in answer) == (status == "finished")
    assert (board.names, board.steps, board.ended) == (["flickr8k/seed-2/scst"], [1], [status])


def test_it_hears_of_an_end_that_a_restart_follows(board: Board, tmp_path: Path) -> None:
    """A lost connection: Ray Train hears of it, and starts the loop again."""

    def lost() -> None:
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError):
        _guarded(loop_that(lost))({"threads": 1, "folder": str(tmp_path)})
    assert board.ended == ["failed"]
