"""Ranks set up together: one that cannot takes the others along, instead of leaving them to wait for it. And what a
rank's error is to Ray Train."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.retrying import EndAtOnce
from raycap.cluster.train_job import _guarded
from raycap.errors import CheckpointError, RaycapError, WorkFailed
from raycap.train.group import built_together
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
