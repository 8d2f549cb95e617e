"""Which errors of a learner are worth another start."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import ray
import torch
from ray.train import ControllerError

from raycap.cluster.retrying import TRACEBACK, EndAtOnce, final
from raycap.errors import CheckpointError, WorkFailed

FROM_OUTSIDE = [
    ConnectionResetError("by peer"),
    OSError(errno.ESTALE, "Stale file handle"),
    MemoryError(),
    ray.exceptions.ActorDiedError(),
    ray.exceptions.GetTimeoutError("no answer"),
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.distributed.DistBackendError("NCCL error"),
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"),
]


@pytest.mark.parametrize("error", FROM_OUTSIDE, ids=lambda error: type(error).__name__)
def test_what_comes_from_outside_may_be_better_next_time(tmp_path: Path, error: Exception) -> None:
    assert final(error, tmp_path) is None
    assert not (tmp_path / TRACEBACK).exists()


def test_ranks_that_nccl_refuses_are_not_started_again(tmp_path: Path) -> None:
    """As torch words it (verl-project/verl#161)."""
    error = torch.distributed.DistBackendError(
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, invalid usage (run with NCCL_DEBUG=WARN for "
        "details), NCCL version 2.20.5\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 10"
    )
    ending = final(error, tmp_path)
    assert isinstance(ending, WorkFailed)
    assert str(ending).startswith(
        "cluster.learner_workers: NCCL cannot work with these ranks: Duplicate GPU detected : rank 1 and rank 0 both "
        "on CUDA device 10 (each needs a GPU of its own: cluster.learner_gpus=1"
    )


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("mat1 and mat2"), KeyError("x"), ZeroDivisionError()])
def test_a_bug_will_be_there_again(tmp_path: Path, error: Exception) -> None:
    ending = final(error, tmp_path)
    assert isinstance(ending, WorkFailed)
    assert type(error).__name__ in str(ending)
    assert str(tmp_path / TRACEBACK) in str(ending)
    assert type(error).__name__ in (tmp_path / TRACEBACK).read_text()


def test_a_checkpoint_that_the_storage_did_not_give_may_be_read_next_time(tmp_path: Path) -> None:
    """Nothing is wrong with it. One that is not there, or a disk that is full, will be so again."""
    stale, gone = OSError(errno.ESTALE, "Stale file handle"), FileNotFoundError(errno.ENOENT, "No such file")
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, cause, ends in (
        (CheckpointError("the storage does not answer"), stale, False),
        (CheckpointError("holds no captioner"), gone, True),
        (WorkFailed("the checkpoint could not be written"), full, True),
    ):
        error.__cause__ = cause
        assert final(error, tmp_path) is (error if ends else None)


def test_what_an_actor_said_is_said_as_it_was(tmp_path: Path) -> None:
    ours = WorkFailed("planted")
    assert final(ray.exceptions.RayTaskError("f", "traceback", ours).as_instanceof_cause(), tmp_path) is ours


def test_ours_is_said_as_it_is(tmp_path: Path) -> None:
    error = CheckpointError("is broken", key="checkpoint", value="x")
    assert final(error, tmp_path) is error


def test_the_controller_ends_with_ours_and_with_no_other() -> None:
    """Ranks that lost the one that failed fail as well, in their own words."""
    ours = WorkFailed("planted")
    callback = EndAtOnce()
    callback.after_exception(None, {0: RuntimeError("gloo: Connection closed by peer"), 1: OSError()})
    with pytest.raises(ControllerError) as ended:
        callback.after_exception(None, {1: ours, 0: RuntimeError("gloo: Connection closed by peer")})
    assert ended.value.controller_failure is ours
