"""Exactly once, seen from where it counts: a learner's leases are those of its step, each once or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from raycap.errors import WorkFailed
from raycap.train.group import Group
from raycap.train.prompts import PromptSchedule
from raycap.types import Rollouts


def set_aside(schedule: PromptSchedule, step: int, rollouts: Sequence[Rollouts], group: Group) -> list[str]:
    """Images of a step that no rank was given: the Exchange has quarantined them.

    Args:
        rollouts: what this rank was given.

    Raises:
        WorkFailed: on every rank, when one of them was given a lease that is not the step's, or two of them the same.
    """
    leases = schedule.leases(step)
    times, foreign = [0.0] * len(leases), 0.0
    for lease in (r.lease for r in rollouts):
        if lease.step == step and lease.number < len(leases) and lease.prompts == leases[lease.number].prompts:
            times[lease.number] += 1
        else:
            foreign += 1
    *times, foreign = group.sum_values([*times, foreign])
    if foreign or max(times) > 1:
        raise WorkFailed(f"step {step} was given {foreign:g} leases of others, and its own {[int(n) for n in times]} "
                         "times", key="exchange", remedy="this is a fault of raycap's; please report it")  # fmt: skip
    return [image for lease, n in zip(leases, times, strict=True) if not n for image in lease.image_ids]
