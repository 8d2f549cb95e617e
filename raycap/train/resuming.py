"""Everything that a resumed loop needs beside the weights, in one dict that goes into the checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from raycap.errors import CheckpointError
from raycap.models.checkpoint import load_captioner
from raycap.models.prefix import PrefixCaptioner
from raycap.train.group import Group
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
    journal: Journal, captioner: PrefixCaptioner, optimizer: torch.optim.Optimizer, average: Average, looks: Stateful
) -> tuple[int, float]:
    """Go on from the journal's newest checkpoint when there is one: (steps done, seconds spent).

    Checkpoints are whole. Ranks that hold shards take theirs from it.
    """
    found = journal.restore()
    if found is None:
        return 0, 0.0
    folder, state = found
    stored = load_captioner(folder).state_dict()
    own = captioner.state_dict()
    for name, value in own.items():
        put(value, stored[name])
    load_optimizer(optimizer, state["optimizer"])
    average.load_state_dict(state["average"])
    looks.load_state_dict(state["looks"])
    return int(state["step"]), float(state["seconds"])


def same_step(group: Group, step: int) -> None:
    """All ranks must go on from one checkpoint.

    Raises:
        CheckpointError: in every rank, when one of them found another newest checkpoint than rank 0.
    """
    first = group.sum_values([float(step) if group.rank == 0 else 0.0])[0]
    if group.sum_values([float(step != first)])[0]:
        raise CheckpointError("the learner's ranks found different newest checkpoints", key="step", value=step,
                              remedy="the storage is slow to show new files: run the same command again")  # fmt: skip
