"""Preemption notices: a node of the learner's will be taken away in a minute or two. A checkpoint is written at once,
and training goes on until the node goes; Ray Train then starts the learner again from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from raycap.train.group import Group

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


def watched() -> bool:
    """Whether Ray Train looks for such notices."""
    return os.environ.get(WATCHER, "1") not in ("0", "false", "False")


ASK_EVERY_S = 5.0
"""As often as Ray Train's watcher looks; asking costs a call to another process."""


class Notices:
    """Notices to this learner, each told once.

    Args:
        ask: gives the notice that stands, or None; all ranks ask together and get the same. Ray Train's when None.
        clock: seconds.
    """

    def __init__(
        self, group: Group, ask: Callable[[], Any] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.group, self._clock = group, clock
        self._ask = ask or _ask_ray_train
        self._asked = clock()
        self._known: frozenset[str] = frozenset()

    def fresh(self) -> str:
        """What to say of a node that is new among those that go; empty when there is none. All ranks must ask."""
        due = self.group.rank == 0 and self._clock() - self._asked >= ASK_EVERY_S
        if not self.group.sum_values([float(due)])[0]:  # rank 0's clock says when
            return ""
        self._asked = self._clock()
        notice = self._ask()
        nodes = frozenset(notice.preempted_node_ids) if notice is not None else frozenset()
        new = nodes - self._known
        self._known |= nodes
        return _said(notice) if new else ""


def _ask_ray_train() -> Any:
    import ray.train

    return ray.train.get_preemption_info()


def _said(notice: Any) -> str:
    ranks = ", ".join(map(str, notice.preempted_ranks))
    when = "" if notice.deadline_ms is None else f" in {max(0.0, notice.deadline_ms / 1000 - time.time()):.0f} s"
    return f"the node of rank {ranks} will be taken away{when}"
