"""Everything that a resumed loop needs beside the weights, in one dict that goes into the checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from raycap.errors import RaycapError
from raycap.models.checkpoint import stored_weights
from raycap.models.prefix import PrefixCaptioner
from raycap.train.group import Group, together
from raycap.train.journal import Journal
from raycap.train.optimizing import Average
from raycap.train.shards import load_optimizer, put
from raycap.train.standing import Standing


class Stateful(Protocol):
    """What a loop remembers of its looks at `select`."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


def training_state(standing: Standing, looks: Stateful, seconds: float) -> dict[str, Any]:
    """Optimizer, averaged weights, what the looks left, seconds so far. Order and randomness hang on the step alone."""
    return {**standing.state_dict(), "looks": looks.state_dict(), "seconds": seconds}


def load_training_state(
    journal: Journal, captioner: PrefixCaptioner, optimizer: torch.optim.Optimizer, average: Average, looks: Stateful,
    group: Group,
) -> tuple[int, float]:  # fmt: skip
    """Go on from the journal's newest checkpoint when there is one: (steps done, seconds spent).

    Rank 0 finds it, and mends what a crash left; the others take the same one. Checkpoints are whole: ranks that hold
    shards take theirs from it.

    Raises:
        RaycapError: on all ranks, when rank 0's journal raised it.
        CheckpointError: its captioner does not fit.
        OSError: the storage does not answer.
    """
    found, error = None, None
    if group.rank == 0:
        try:
            found = journal.restore()
        except RaycapError as raised:
            error = raised
    together(group, error)
    name = group.gather_texts(found[0].name if found else "")[0]
    if not name:
        return 0, 0.0
    folder, state = found or journal.checkpoint(name)
    own = captioner.state_dict()
    for key, value in stored_weights(folder, captioner).items():
        put(own[key], value)
    load_optimizer(optimizer, state["optimizer"])
    average.load_state_dict(state["average"])
    looks.load_state_dict(state["looks"])
    return int(state["step"]), float(state["seconds"])
