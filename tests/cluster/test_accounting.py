"""The learner's own count of a step's leases, on one rank and on several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycap.cluster.accounting import set_aside
from raycap.errors import WorkFailed
from raycap.train.group import Alone
from raycap.train.prompts import PromptSchedule
from raycap.types import Rollouts, StepPart

SCHEDULE = PromptSchedule([f"i{n}" for n in range(12)], batch_size=6, lease_size=2, seed=0)


def given(*leases: Any, aside: tuple[int, ...] = ()) -> StepPart:
    return StepPart(tuple(Rollouts(lease, None, None, {}) for lease in leases), aside)


def test_a_whole_step_leaves_nothing_out() -> None:
    assert set_aside(SCHEDULE, 1, given(*SCHEDULE.leases(1)), Alone()) == []


def test_what_was_set_aside_is_named() -> None:
    first, second, third = SCHEDULE.leases(1)
    assert set_aside(SCHEDULE, 1, given(first, third, aside=(1,)), Alone()) == list(second.image_ids)


def test_ranks_count_together(on_ranks: Any) -> None:
    first, second, third = SCHEDULE.leases(1)
    parts = [given(first, third), given(aside=(1,))]
    found = on_ranks(2, lambda group: set_aside(SCHEDULE, 1, parts[group.rank], group))
    assert found == [list(second.image_ids)] * 2


@pytest.mark.parametrize("aside", [(), (0,), (1, 1), (1, 2), (3,)], ids=str)
def test_what_is_missing_was_set_aside_and_what_was_set_aside_is_missing(aside: tuple[int, ...]) -> None:
    """Of three leases the second is not given."""
    first, _, third = SCHEDULE.leases(1)
    with pytest.raises(WorkFailed, match=r"exchange: step 1 was given \d leases of others, its own \[1, 0, 1\] times"):
        set_aside(SCHEDULE, 1, given(first, third, aside=aside), Alone())


def test_twice_the_same_or_of_another_step_is_a_fault_on_every_rank(on_ranks: Any) -> None:
    first, second, third = SCHEDULE.leases(1)
    other = replace(second, prompts=first.prompts)
    for mine, theirs in (
        ([first, third], [first, second]),  # both ranks were given the first
        ([first, third], [other]),
        ([first, third], [SCHEDULE.leases(0)[1]]),
        ([first, third], [replace(second, number=3)]),
    ):
        parts = [given(*mine), given(*theirs)]

        def count(group: Any, parts: list[StepPart] = parts) -> str:
            with pytest.raises(WorkFailed, match=r"exchange: step 1 was given"):
                set_aside(SCHEDULE, 1, parts[group.rank], group)
            return "raised"

        assert on_ranks(2, count) == ["raised", "raised"]
