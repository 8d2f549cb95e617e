"""Exactly once, seen from where it counts: a learner's leases are those of its step, each once or set aside."""

from __future__ import annotations

from raycap.errors import WorkFailed
from raycap.train.group import Group
from raycap.train.prompts import PromptSchedule
from raycap.types import StepPart


def set_aside(schedule: PromptSchedule, step: int, part: StepPart, group: Group) -> list[str]:
    """Images of a step that no rank was given, because the Exchange has quarantined them.

    Args:
        part: what this rank was given, and told that it is not given.

    Raises:
        WorkFailed: on every rank, when one of them was given a lease that is not the step's, two of them the same, or
            when one of the step's was neither given nor set aside, or both.
    """
    leases = schedule.leases(step)
    times, aside, foreign = [0.0] * len(leases), [0.0] * len(leases), 0.0
    for lease in (r.lease for r in part.rollouts):
        if lease.step == step and lease.number < len(leases) and lease.prompts == leases[lease.number].prompts:
            times[lease.number] += 1
        else:
            foreign += 1
    for number in part.set_aside:
        if number < len(leases):
            aside[number] += 1
        else:
            foreign += 1
    *counted, foreign = group.sum_values([*times, *aside, foreign])
    times, aside = counted[: len(leases)], counted[len(leases) :]
    if foreign or any(given + left != 1 for given, left in zip(times, aside, strict=True)):
        raise WorkFailed(f"step {step} was given {foreign:g} leases of others, its own {[int(n) for n in times]} times "
                         f"and told {[int(n) for n in aside]} times that they are set aside", key="exchange",
                         remedy="this is a fault of raycap's; please report it")  # fmt: skip
    return [image for lease, left in zip(leases, aside, strict=True) if left for image in lease.image_ids]
