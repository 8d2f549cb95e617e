"""The Exchange's book: where each lease of the open steps is, and the check that it is in exactly one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from raycap.types import Lease, Rollouts

PENDING, LEASED, READY, CONSUMED, QUARANTINED = "pending", "leased", "ready", "consumed", "quarantined"
GENERATES = "generates"
QUIET_S = 30.0
"""A holder that waits is heard every few seconds; one that has not been for so long is spoken of as silent."""


@dataclass
class Slot:
    """One lease's state. Times are seconds of the Exchange's clock.

    Attributes:
        holder, since: who has it while it is leased, and since when.
        doing, doing_since: what the holder is at, in words, and since when.
        heard: when the holder last spoke of it. Who generates says nothing.
        rollouts: once it is ready.
        deaths, expired, returned: how many workers died while they generated it, how often it expired, how often it was
            given back.
    """

    lease: Lease
    state: str = PENDING
    holder: str = ""
    since: float = 0.0
    doing: str = GENERATES
    doing_since: float = 0.0
    heard: float = 0.0
    rollouts: Rollouts | None = None
    deaths: int = 0
    expired: int = 0
    returned: int = 0

    def give(self, worker: str, now: float) -> None:
        """To a worker, who generates it first."""
        self.state, self.holder, self.doing = LEASED, worker, GENERATES
        self.since = self.doing_since = self.heard = now

    def hear(self, doing: str, now: float) -> None:
        """Its holder lives, and says what it is at."""
        self.heard = now
        if doing != self.doing:
            self.doing, self.doing_since = doing, now

    def redo(self) -> None:
        """Pending again, as another attempt."""
        self.lease, self.holder, self.state = replace(self.lease, attempt=self.lease.attempt + 1), "", PENDING

    def fill(self, rollouts: Rollouts) -> None:
        """Ready, with what came back."""
        self.state, self.holder, self.rollouts = READY, "", rollouts

    def who(self, now: float) -> str:
        """In words: who holds it, for how long, at what."""
        quiet = self.doing != GENERATES and now - self.heard > QUIET_S
        silent = f", last heard {now - self.heard:.0f} s ago" if quiet else ""
        lease = f"lease {self.lease.step}/{self.lease.number} since {now - self.since:.0f} s ago"
        return f"{self.holder}, which holds {lease}, {self.doing} (for {now - self.doing_since:.0f} s{silent})"


def violation(slots: Iterable[Slot], sizes: Mapping[int, int]) -> str:
    """What is wrong where a lease is lost, or in two states; empty when nothing is.

    Args:
        sizes: leases of each open step.
    """
    slots = list(slots)
    count = Counter(slot.lease.step for slot in slots)
    for step in {*sizes, *count}:
        expected, found = sizes.get(step, 0), count[step]
        if found != expected:
            return f"step {step} has {found} leases of {expected}"
    for slot in slots:
        scored = slot.rollouts is not None
        if (slot.state in (READY, CONSUMED)) != scored or (slot.state == LEASED) != bool(slot.holder):
            return (f"lease {slot.lease.step}/{slot.lease.number} is {slot.state}, its holder {slot.holder!r} and "
                    f"{'scored' if scored else 'not scored'}")  # fmt: skip
    return ""
