"""The Exchange's book: what is said of a lease, and what is wrong with a book."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycap.cluster.slots import CONSUMED, GENERATES, LEASED, PENDING, QUARANTINED, READY, Slot, violation
from raycap.types import Lease, Prompt, Rollouts

LEASES = [Lease(step, number, (Prompt("a", 0),)) for step in (3, 4) for number in range(2)]
MADE: Any = Rollouts(LEASES[0], None, None, {})  # type: ignore[arg-type]


def test_by_hand_what_a_lease_goes_through() -> None:
    slot = Slot(LEASES[0])
    slot.give("w", 10.0)
    assert (slot.state, slot.doing) == (LEASED, GENERATES)
    assert slot.who(14.0) == "w, which holds lease 3/0 since 4 s ago, generates (for 4 s)"
    for now in (20.0, 25.0, 30.0):
        slot.hear("waits for rewards: clip", now)
    assert slot.who(32.0) == "w, which holds lease 3/0 since 22 s ago, waits for rewards: clip (for 12 s)"
    assert slot.who(65.0).endswith("waits for rewards: clip (for 45 s, last heard 35 s ago)")
    slot.redo()
    assert (slot.state, slot.holder, slot.lease) == (PENDING, "", replace(LEASES[0], attempt=1))
    slot.give("v", 70.0)
    assert slot.who(71.0) == "v, which holds lease 3/0 since 1 s ago, generates (for 1 s)"
    slot.fill(MADE)
    assert (slot.state, slot.holder, slot.rollouts) == (READY, "", MADE)


def book() -> list[Slot]:
    """One lease in each state but pending."""
    slots = [Slot(lease) for lease in LEASES]
    slots[0].state, slots[0].rollouts = CONSUMED, MADE
    slots[1].state = QUARANTINED
    slots[2].give("w", 0.0)
    slots[3].fill(MADE)
    return slots


def test_a_book_that_is_right() -> None:
    assert violation(book(), {3: 2, 4: 2}) == ""
    assert violation([], {}) == ""


@pytest.mark.parametrize(
    ("place", "changes", "wrong"),
    [
        (0, {"rollouts": None}, "lease 3/0 is consumed, its holder '' and not scored"),
        (1, {"holder": "w"}, "lease 3/1 is quarantined, its holder 'w' and not scored"),
        (1, {"rollouts": MADE}, "lease 3/1 is quarantined, its holder '' and scored"),
        (2, {"holder": ""}, "lease 4/0 is leased, its holder '' and not scored"),
        (2, {"state": PENDING}, "lease 4/0 is pending, its holder 'w' and not scored"),
        (3, {"state": LEASED}, "lease 4/1 is leased, its holder '' and scored"),
    ],
)
def test_a_lease_in_two_states_is_named(place: int, changes: dict[str, Any], wrong: str) -> None:
    slots = book()
    for name, value in changes.items():
        setattr(slots[place], name, value)
    assert violation(slots, {3: 2, 4: 2}) == wrong


def test_a_lease_too_many_or_too_few_is_counted() -> None:
    assert violation(book()[:-1], {3: 2, 4: 2}) == "step 4 has 1 leases of 2"
    assert violation(book(), {3: 2}) == "step 4 has 2 leases of 0"
    assert violation(book(), {3: 2, 4: 2, 5: 1}) == "step 5 has 0 leases of 1"
