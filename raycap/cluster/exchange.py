"""The Exchange: which slice of which step is where, and which weights are the newest. One actor, soft state only.

    pending ──lease()──▶ leased ──deliver()──▶ ready ──take()──▶ consumed ──next publish()──▶ forgotten
       ▲                   │  │
       └──worker lost, ────┘  └──killed its worker n times──▶ quarantined
          expired, given back (n times: the run ends, and says so)

A step's leases become pending once version `step − max_policy_lag` is out. The learner calls `reset` at every start
and restart, and when it finds an Exchange that does not know it (Ray started it again), so the Exchange needs no
persistence; whatever carries another incarnation is dropped and counted.
Every lease (and with it every prompt) of an open step is in exactly one state; `_check` holds that at every change.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raycap.errors import RaycapError, WorkFailed
from raycap.train.prompts import PromptSchedule
from raycap.types import Lease, Rollouts, WeightsId

PENDING, LEASED, READY, CONSUMED, QUARANTINED = "pending", "leased", "ready", "consumed", "quarantined"
GENERATES = "generates"
Answer = Literal["waiting", "unknown"]


@dataclass
class _Slot:
    """One lease's state. `holder` and `since` (seconds, monotonic) while leased, `rollouts` once ready; how many
    workers died while they generated it, how often it expired, how often it was given back."""

    lease: Lease
    state: str = PENDING
    holder: str = ""
    since: float = 0.0
    rollouts: Rollouts | None = None
    deaths: int = 0
    expired: int = 0
    returned: int = 0


class Exchange:
    """See the module's docstring. Plain and single-threaded: its methods are coroutines of one event loop.

    Args:
        schedule: the run's prompts by step.
        total_steps: no lease is given out beyond them.
        max_policy_lag: versions that rollouts may be behind.
        lease_timeout_s: a lease held longer goes back to pending.
        quarantine_after: a lease that lost this many workers is set aside, named and counted; one that expired so
            often ends the run.
    """

    def __init__(
        self,
        schedule: PromptSchedule,
        *,
        total_steps: int,
        max_policy_lag: int,
        lease_timeout_s: float,
        quarantine_after: int,
    ) -> None:
        self.schedule, self.total_steps, self.lag = schedule, total_steps, max_policy_lag
        self.lease_timeout_s, self.quarantine_after = lease_timeout_s, quarantine_after
        self.counts: Counter[str] = Counter()
        self.quarantined: list[dict[str, Any]] = []
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._opened = self._taken = (
            0  # steps below `_opened` have slots or are done; steps below `_taken` are consumed
        )
        self._asked: tuple[int, int | None] | None = None  # the step that was taken last, by which incarnation
        self._weights_id: WeightsId | None = None
        self._weights: Any = None
        self._doing: dict[tuple[int, int], tuple[str, float]] = {}  # by lease what its holder is at, and since when
        self._gone: set[str] = set()  # workers that were lost; a call of theirs may still be waiting here
        self._moved = time.monotonic()  # when something last got further
        self._heard: float | None = None  # when the learner last called
        self._failure: RaycapError | None = None
        self._closed = False
        self._changed = asyncio.Condition()

    async def reset(self, incarnation: int, step: int) -> None:
        """The learner (re)starts at `step`: forget everything but a failure, which no start mends (a worker may have
        met it while the learner's process came up). Nothing is leased until it has published."""
        async with self._changed:
            self.counts["dropped_at_reset"] += sum(s.state in (LEASED, READY) for s in self._slots.values())
            self._slots.clear()
            self._doing.clear()
            self._opened = self._taken = step
            self._weights_id, self._weights = WeightsId(incarnation, -1), None
            self._closed = False
            self._moved = self._heard = time.monotonic()
            self._changed.notify_all()

    async def publish(self, weights_id: WeightsId, weights: list[Any]) -> bool:
        """New weights are out: `weights` holds the object reference (in a list, so that Ray does not resolve it).

        Returns:
            False when this Exchange knows nothing of the learner: it is a new one, and wants a `reset`.
        """
        async with self._changed:
            if self._weights_id is None or weights_id.incarnation != self._weights_id.incarnation:
                self.counts["dropped_weights"] += 1
                return False
            self._weights_id, self._weights = weights_id, weights
            self._moved = self._heard = time.monotonic()
            self._forget(weights_id.policy_version)
            last = min(self.total_steps, weights_id.policy_version + self.lag + 1)
            while self._opened < last:
                for lease in self.schedule.leases(self._opened):
                    self._slots[lease.step, lease.number] = _Slot(lease)
                self._opened += 1
            self._check()
            self._changed.notify_all()
            return True

    async def lease(
        self, worker: str, known: WeightsId | None, holding: Sequence[tuple[int, int]] = (), wait_s: float = 1.0
    ) -> dict[str, Any]:
        """The next slice to generate, for one worker.

        Args:
            holding: (step, number) of the leases that it has; others that this Exchange thinks it has were given to a
                call whose answer was lost, and are pending again.

        Returns:
            {"lease", "weights_id", "weights"}: `weights` is None when the worker already has them; "lease" is None
            when nothing was pending for `wait_s`; {"closed": True} when the run is over, or the worker was lost.
        """
        deadline = time.monotonic() + wait_s
        async with self._changed:
            for key, slot in self._slots.items():
                if slot.state == LEASED and slot.holder == worker and key not in holding:
                    self._redo(slot)
            while True:
                self._expire()
                if self._closed or self._failure or worker in self._gone:
                    return {"closed": True}
                free = next((s for s in self._slots.values() if s.state == PENDING), None)
                if free is not None and self._weights is not None:
                    free.state, free.holder, free.since = LEASED, worker, time.monotonic()
                    self._doing[free.lease.step, free.lease.number] = (GENERATES, free.since)
                    self._check()
                    fresh = None if known == self._weights_id else self._weights
                    return {"lease": free.lease, "weights_id": self._weights_id, "weights": fresh}
                left = deadline - time.monotonic()
                if left <= 0:
                    return {"lease": None}
                await self._wait(left)

    async def deliver(self, worker: str, rollouts: Rollouts) -> bool:
        """A scored slice comes back; False when it is late, of another incarnation or too old, and was dropped."""
        async with self._changed:
            slot = self._slots.get((rollouts.lease.step, rollouts.lease.number))
            now = self._weights_id
            if now is None or rollouts.weights_id.incarnation != now.incarnation:
                self.counts["dropped_incarnation"] += 1
                return False
            if slot is None or slot.state != LEASED or slot.holder != worker or slot.lease != rollouts.lease:
                self.counts["dropped_late"] += 1
                return False
            if rollouts.lease.step - rollouts.weights_id.policy_version > self.lag:
                self.counts["dropped_stale"] += 1
                slot.state, slot.holder = PENDING, ""
            else:
                slot.state, slot.holder, slot.rollouts = READY, "", rollouts
                self._moved = time.monotonic()
                self.counts["delivered"] += 1
            self._check()
            self._changed.notify_all()
            return slot.state == READY

    async def give_back(self, worker: str, lease: Lease, why: str) -> None:
        """A worker could not go on with it: pending again, as often as workers may die of it."""
        async with self._changed:
            slot = self._slots.get((lease.step, lease.number))
            if slot is None or slot.state != LEASED or slot.holder != worker or slot.lease != lease:
                return
            slot.returned += 1
            if slot.returned >= self.quarantine_after:
                self._fail(WorkFailed(f"a lease of step {lease.step} was given back {slot.returned} times: {why}",
                                      key="lease", value=f"{lease.step}/{lease.number}",
                                      remedy="look at the rollout workers' logs"))  # fmt: skip
            self._redo(slot)
            self._check()
            self._changed.notify_all()

    async def weights_lost(self, worker: str, lease: Lease, weights_id: WeightsId) -> None:
        """A worker could not have the weights, because who put them has died: nobody gets them any more. The next
        learner publishes its own; where it still lives, its next `take` tells it to."""
        async with self._changed:
            slot = self._slots.get((lease.step, lease.number))
            if slot is not None and slot.state == LEASED and slot.holder == worker and slot.lease == lease:
                self._redo(slot)
            if self._weights_id == weights_id:
                self._weights_id = self._weights = None
            self._check()
            self._changed.notify_all()

    async def take(
        self, step: int, rank: int, size: int, timeout_s: float, incarnation: int | None = None,
        wait_s: float = math.inf,
    ) -> list[Rollouts] | Answer:  # fmt: skip
        """This rank's slices of a step, in prompt order, once all of them are ready; those set aside are missing.

        It may be asked for again, until the version that was learned from it is published.

        Args:
            timeout_s: without any progress; longer than that is a stall.
            incarnation: of the learner that asks; rollouts of another one are not for it. None asks for any.
            wait_s: after so long the answer is `waiting`.

        Returns:
            `unknown` when this Exchange knows nothing of the learner: it is a new one, and wants a `reset`.

        Raises:
            RaycapError: what a worker reported by `fail`; WorkFailed when nothing moved for `timeout_s`.
        """
        async with self._changed:
            if self._weights_id is None and incarnation is not None:
                return "unknown"
            asked = self._heard = time.monotonic()
            if self._asked != (step, incarnation):  # while the learner was busy nobody waited for anything
                self._asked, self._moved = (step, incarnation), asked
            while True:
                self._expire()
                if self._failure:
                    raise self._failure
                slots = [s for s in self._slots.values() if s.lease.step == step and s.lease.number % size == rank]
                if incarnation is not None and (
                    self._weights_id is None or self._weights_id.incarnation != incarnation
                ):
                    slots = []  # rank 0 of the restarted learner has not called `reset` yet
                if slots and all(s.state in (READY, QUARANTINED, CONSUMED) for s in slots):
                    break
                now = time.monotonic()
                if now - self._moved > timeout_s:
                    raise WorkFailed(f"step {step} got no further for so long: {self._who_waits()}",
                                     key="cluster.stall_timeout_s", value=timeout_s,
                                     remedy="raise it where that is slow and not stuck")  # fmt: skip
                if now - asked > wait_s:
                    return "waiting"
                await self._wait(1.0)
            whole = [s for s in self._slots.values() if s.lease.step == step]
            if all(s.state == QUARANTINED for s in whole):
                raise WorkFailed("every lease of it was set aside: there is nothing to learn from", key="step",
                                 value=step, remedy="look at the rollout workers' logs")  # fmt: skip
            for slot in slots:
                if slot.state == READY:
                    slot.state = CONSUMED
            return [s.rollouts for s in slots if s.rollouts is not None]

    async def worker_lost(self, worker: str, suspicious: bool = True) -> None:
        """A worker died: what it held is pending again, as another attempt. What it generated is suspected of having
        killed it, and quarantined after some deaths; what only waited for its rewards is not.

        Args:
            suspicious: False when it was sent home.
        """
        async with self._changed:
            self._gone.add(worker)
            self.counts["workers_lost" if suspicious else "workers_sent_home"] += 1
            for key, slot in self._slots.items():
                if slot.state != LEASED or slot.holder != worker:
                    continue
                if suspicious and self._doing.get(key, (GENERATES, 0.0))[0] == GENERATES:
                    self._give_up(slot, f"worker {worker} died")
                else:
                    self._redo(slot)
            self._check()
            self._changed.notify_all()

    async def fail(self, error: RaycapError) -> None:
        """A worker met an error that no retry mends: the learner's next `take` raises it."""
        async with self._changed:
            self._fail(error)
            self._changed.notify_all()

    async def doing(self, worker: str, step: int, number: int, what: str) -> None:
        """What the holder of a lease is at now; told when a run stalls."""
        slot = self._slots.get((step, number))
        if slot is not None and slot.holder == worker:
            self._doing[step, number] = (what, time.monotonic())

    async def close(self) -> None:
        """The run is over: workers asking for leases are sent home."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def status(self) -> dict[str, Any]:
        """Counts for log and terminal. `learner_silent_s`: since the learner last called; None when it never did."""
        return {
            "learner_silent_s": None if self._heard is None else time.monotonic() - self._heard,
            "states": self._states(),
            "counts": dict(self.counts),
            "quarantined": list(self.quarantined),
        }

    def _fail(self, error: RaycapError) -> None:
        self._failure = self._failure or error

    def _states(self) -> dict[str, int]:
        return dict(Counter(slot.state for slot in self._slots.values()))

    def _who_waits(self) -> str:
        """In words: who waits for whom."""
        if self._weights is None:
            return "the learner has published no weights"
        held = [s for s in self._slots.values() if s.state == LEASED]
        if not held and any(s.state == PENDING for s in self._slots.values()):
            return "leases are pending, and no rollout worker asks for one"
        now, parts = time.monotonic(), []
        for slot in held:
            what, since = self._doing.get(
                (slot.lease.step, slot.lease.number), ("has not said what it does", slot.since)
            )
            parts.append(f"{slot.holder}, which holds lease {slot.lease.step}/{slot.lease.number} since "
                         f"{now - slot.since:.0f} s ago, {what} (for {now - since:.0f} s)")  # fmt: skip
        return "; ".join(parts) or f"leases are {self._states()}"

    def _redo(self, slot: _Slot) -> None:
        slot.lease, slot.holder = replace(slot.lease, attempt=slot.lease.attempt + 1), ""
        self.counts["leases_redone"] += 1
        slot.state = PENDING

    def _give_up(self, slot: _Slot, reason: str) -> None:
        """A worker died of it, or beside it."""
        self._redo(slot)
        slot.deaths += 1
        if slot.deaths >= self.quarantine_after:
            slot.state, self._moved = QUARANTINED, time.monotonic()
            self.counts["quarantined"] += 1
            self.quarantined.append({"step": slot.lease.step, "images": slot.lease.image_ids, "reason": reason})
            print(f"step {slot.lease.step}: {len(slot.lease.prompts)} images are set aside, {reason}: "
                  f"{', '.join(slot.lease.image_ids[:3])} ...", flush=True)  # fmt: skip

    def _expire(self) -> None:
        for slot in self._slots.values():
            if slot.state == LEASED and time.monotonic() - slot.since > self.lease_timeout_s:
                self.counts["leases_expired"] += 1
                slot.expired += 1
                if slot.expired >= self.quarantine_after:
                    # nobody died of it: to drop its images would hide that leases take longer than they may
                    self._fail(WorkFailed(
                        f"a lease of step {slot.lease.step} took longer than that, {slot.expired} times over",
                        key="cluster.lease_timeout_s", value=self.lease_timeout_s,
                        remedy="raise it, or lower scst.lease_size",
                    ))  # fmt: skip
                self._redo(slot)

    def _forget(self, version: int) -> None:
        """The learner has learned from all steps before `version`."""
        for key in [key for key in self._slots if key[0] < version]:
            del self._slots[key]
            self._doing.pop(key, None)
        self._taken = max(self._taken, version)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), min(seconds, 1.0))
        except TimeoutError:
            return  # looked again because leases may have expired

    def _check(self) -> None:
        """Every prompt of every open step is in exactly one state; a violation ends the run."""
        wrong = self._violation()
        if wrong:
            self._fail(WorkFailed(wrong, key="exchange", remedy="this is a fault of raycap's; please report it"))
            raise WorkFailed(wrong, key="exchange", remedy="this is a fault of raycap's; please report it")

    def _violation(self) -> str:
        for step in range(self._taken, self._opened):
            expected = len(self.schedule.leases(step))
            found = sum(slot.lease.step == step for slot in self._slots.values())
            if found != expected:
                return f"step {step} has {found} leases of {expected}"
        for slot in self._slots.values():
            scored = slot.rollouts is not None
            if (slot.state in (READY, CONSUMED)) != scored or (slot.state == LEASED) != bool(slot.holder):
                return f"lease {slot.lease.step}/{slot.lease.number} is {slot.state}, but holder is {slot.holder!r}"
        return ""


class ExchangeActor(Exchange):
    """An Exchange in a process of its own, which Ray can start again.

    Args:
        prompts: file with the image ids, a JSON list. As an argument they would be freed once the actor is there (what
            is larger than 100 KB is), and it could not be started again.
        batch_size, lease_size, seed: see `PromptSchedule`.
    """

    def __init__(self, prompts: str, *, batch_size: int, lease_size: int, seed: int, **options: Any) -> None:
        ids = json.loads(Path(prompts).read_text())
        schedule = PromptSchedule(ids, batch_size=batch_size, lease_size=lease_size, seed=seed)
        super().__init__(schedule, **options)
