"""Notices that a node will be taken away, as clouds give them for spot machines: what was learned is written in time.

The run goes on. Ray Train starts the learner's group again elsewhere when the node goes, which costs none of its
restarts, and rollout and reward actors are replaced as after any loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


def watched() -> bool:
    """Whether Ray Train looks for such notices."""
    return os.environ.get(WATCHER, "1") not in ("0", "false", "False")


def notices() -> Callable[[], bool]:
    """Whether a notice of a learner's node has come since it was asked before: for all ranks of a Ray Train job, which
    ask at the same times."""
    import ray.train

    known = None

    def new() -> bool:
        nonlocal known
        found = ray.train.get_preemption_info()
        if found == known:
            return False
        known = found
        if found is not None and ray.train.get_context().get_world_rank() == 0:
            print(f"nodes of ranks {found.preempted_ranks} will be taken away: a checkpoint is written now", flush=True)
        return found is not None

    return new
