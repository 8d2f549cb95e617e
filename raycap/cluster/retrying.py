"""Which of a learner's errors another start may mend, and how the others end the run at once.

Ray Train starts the worker group again after any error. What a rank meets there is nearly always deterministic, because
a run that goes on from its checkpoint repeats itself: it would fail again, as often as it may. Worth another start is
what comes from outside: a process or a node that died, a connection, the storage, a GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train

from raycap.cluster.passing import storage_fails
from raycap.cluster.reaching import said
from raycap.errors import CheckpointError, RaycapError, WorkFailed

TRACEBACK = "learner_error.txt"
_GLOO = "gloo"  # torch's CPU collectives raise a plain RuntimeError, with the place in gloo's code
_MISUSED = ("ncclInvalidUsage", "ncclInvalidArgument", "Duplicate GPU")  # of NCCL: the next start has the same ranks


def final(error: BaseException, folder: Path) -> RaycapError | None:
    """What the run ends with when a learner's rank raised this; None where another start may mend it.

    Args:
        folder: of the stage, which gets the traceback of what raycap did not foresee.
    """
    import torch

    if isinstance(error, RaycapError):
        ours = said(error)
        assert isinstance(ours, RaycapError)
        # where the storage did not answer while a checkpoint was read, nothing is wrong with the checkpoint
        return None if isinstance(ours, CheckpointError) and storage_fails(ours) else ours
    if isinstance(error, torch.distributed.DistError) and any(word in str(error) for word in _MISUSED):
        words = " ".join(str(error).split())
        why = words.partition("Last error: ")[2] or words
        return WorkFailed(f"NCCL cannot work with these ranks: {why[:300]}", key="cluster.learner_workers",
                          remedy="each needs a GPU of its own: cluster.learner_gpus=1, and no CUDA_VISIBLE_DEVICES of "
                          "yours on the nodes; or cluster.learner_workers=1")  # fmt: skip
    outside = (ray.exceptions.RayError, OSError, MemoryError, torch.OutOfMemoryError, torch.distributed.DistError)
    if isinstance(error, (*outside, getattr(torch, "AcceleratorError", MemoryError))):
        return None
    if isinstance(error, RuntimeError) and _GLOO in str(error):
        return None
    with suppress(OSError):
        (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)))
    return WorkFailed(f"the learner failed: {type(error).__name__}: {error}"[:1000], key="stage", value=folder.name,
                      remedy=f"it would fail again, and was not started again; its traceback is in "
                      f"{folder / TRACEBACK}")  # fmt: skip


class EndAtOnce(ray.train.UserCallback):
    """In Ray Train's controller: a `RaycapError` of any rank ends the run, also where the other ranks still wait for
    that one in a collective. (What is raised here is the controller's own error, which it does not retry.)"""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:
        for _rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, RaycapError):
                raise ray.train.ControllerError(error)
