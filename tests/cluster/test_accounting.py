"""The learner's own count of a step's leases, on one rank and on several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycap.cluster.accounting import set_aside
from raycap.errors import WorkFailed
from raycap.train.group import Alone
from raycap.train.prompts import PromptSchedule
from raycap.types import Rollouts

SCHEDULE = PromptSchedule([f"i{n}" for n in range(12)], batch_size=6, lease_size=2, seed=0)


def given(*leases: Any) -> list[Rollouts]:
    return [Rollouts(lease, None, None, {}) for lease in leases]


def test_a_whole_step_leaves_nothing_out() -> None:
    assert set_aside(SCHEDULE, 1, given(*SCHEDULE.leases(1)), Alone()) == []


def test_what_is_missing_is_named() -> None:
    first, second, third = SCHEDULE.leases(1)
    assert set_aside(SCHEDULE, 1, given(first, third), Alone()) == list(second.image_ids)


def test_ranks_count_together(on_ranks: Any) -> None:
    first, second, third = SCHEDULE.leases(1)
    parts = [given(first), given(third)]
    found = on_ranks(2, lambda group: set_aside(SCHEDULE, 1, parts[group.rank], group))
    assert found == [list(second.image_ids)] * 2


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

        def count(group: Any, parts: list[list[Rollouts]] = parts) -> str:
            with pytest.raises(WorkFailed, match=r"exchange: step 1 was given"):
                set_aside(SCHEDULE, 1, parts[group.rank], group)
            return "raised"

        assert on_ranks(2, count) == ["raised", "raised"]
