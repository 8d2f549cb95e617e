"""The Exchange: which slice of which step is where, and which weights are the newest. One actor, soft state only.

    pending ──lease()──▶ leased ──deliver()──▶ ready ──take()──▶ consumed ──next publish()──▶ forgotten
       ▲                   │  │
       └──worker lost, ────┘  └──killed its worker n times──▶ quarantined
          expired, given back (n times: the run ends, and says so)

A step's leases become pending once version `step − max_policy_lag` is out. The learner calls `reset` at every start
and restart, and when it finds an Exchange that does not know it (Ray started it again), so the Exchange needs no
persistence; whatever carries another incarnation is dropped and counted.
A lease expires when nothing was heard of it for too long: while its captions are generated its holder says nothing, and
while it waits for rewards, however long these take, the holder says so every few seconds.
Every lease (and with it every prompt) of an open step is in exactly one state; `_check` holds that at every change.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Literal, NoReturn

from raycap.cluster.reaching import LOGS
from raycap.cluster.slots import CONSUMED, GENERATES, LEASED, PENDING, QUARANTINED, READY, Slot, violation
from raycap.errors import RaycapError, WorkFailed
from raycap.train.prompts import PromptSchedule
from raycap.types import LeaseId, Rollouts, StepPart, WeightsId

Answer = Literal["waiting", "unknown"]


class Exchange:
    """See the module's docstring. Plain and single-threaded: its methods are coroutines of one event loop.

    Args:
        schedule: the run's prompts by step.
        total_steps: no lease is given out beyond them.
        max_policy_lag: versions that rollouts may be behind.
        lease_timeout_s: a lease that nothing was heard of for longer goes back to pending.
        quarantine_after: a lease that lost this many workers is set aside, named and counted; one that expired so
            often ends the run.
        clock: seconds.
    """

    def __init__(
        self,
        schedule: PromptSchedule,
        *,
        total_steps: int,
        max_policy_lag: int,
        lease_timeout_s: float,
        quarantine_after: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule, self.total_steps, self.lag = schedule, total_steps, max_policy_lag
        self.lease_timeout_s, self.quarantine_after, self._clock = lease_timeout_s, quarantine_after, clock
        self.counts: Counter[str] = Counter()
        self.quarantined: list[dict[str, Any]] = []
        self._slots: dict[tuple[int, int], Slot] = {}
        self._sizes: dict[int, int] = {}  # leases of each open step
        self._opened = 0  # steps below have slots or are done
        self._asked: tuple[int, int | None] | None = None  # the step that was taken last, by which incarnation
        self._incarnation = self._first = -1  # of the learner, now and when this Exchange first heard of one
        self._weights_id: WeightsId | None = None
        self._weights: Any = None
        self._workers: set[str] = set()  # that asked for a lease and were not lost since
        self._gone: set[str] = set()  # workers that were lost; a call of theirs may still be waiting here
        self._moved = clock()  # when something last got further
        self._heard: float | None = None  # when the learner last called
        self._failure: RaycapError | None = None
        self._closed = False
        self._changed = asyncio.Condition()

    async def reset(self, incarnation: int, step: int) -> None:
        """The learner (re)starts at `step`: forget everything but a failure, which no start mends (a worker may have
        met it while the learner's process came up). Nothing is leased until it has published. What a learner that is
        gone by now had sent is dropped."""
        async with self._changed:
            if incarnation < self._incarnation:
                self.counts["dropped_resets"] += 1
                return
            self.counts["dropped_at_reset"] += sum(s.state in (LEASED, READY) for s in self._slots.values())
            self._slots.clear()
            self._sizes.clear()
            self._opened, self._incarnation = step, incarnation
            self._first = incarnation if self._first < 0 else self._first
            self._weights_id, self._weights = WeightsId(incarnation, -1), None
            self._closed = False
            self._moved = self._heard = self._clock()
            self._check()
            self._changed.notify_all()

    async def publish(self, weights_id: WeightsId, weights: list[Any]) -> bool:
        """New weights are out: `weights` holds the object reference (in a list, so that Ray does not resolve it).

        Returns:
            False when this Exchange knows nothing of the learner: it is a new one, and wants a `reset`.
        """
        async with self._changed:
            if self._weights_id is None or weights_id.incarnation != self._incarnation:
                self.counts["dropped_weights"] += 1
                return False
            self._weights_id, self._weights = weights_id, weights
            self._moved = self._heard = self._clock()
            self._forget(weights_id.policy_version)
            last = min(self.total_steps, weights_id.policy_version + self.lag + 1)
            while self._opened < last:
                leases = self.schedule.leases(self._opened)
                self._slots |= {(lease.step, lease.number): Slot(lease) for lease in leases}
                self._sizes[self._opened] = len(leases)
                self._opened += 1
            self._check()
            self._changed.notify_all()
            return True

    async def lease(
        self, worker: str, known: WeightsId | None, holding: Collection[LeaseId] = (), wait_s: float = 1.0
    ) -> dict[str, Any]:
        """The next slice to generate, for one worker.

        Args:
            holding: the leases that it has; others that this Exchange thinks it has were given to a call whose answer
                was lost, and are pending again.

        Returns:
            {"lease", "weights_id", "weights"}: `weights` is None when the worker already has them; "lease" is None
            when nothing was pending for `wait_s`; {"closed": True} when the run is over, or the worker was lost.
        """
        deadline = self._clock() + wait_s
        async with self._changed:
            for slot in self._slots.values():
                if slot.state == LEASED and slot.holder == worker and slot.lease.id(self._incarnation) not in holding:
                    self._redo(slot)
            while True:
                self._expire()
                self._check()
                if self._closed or self._failure or worker in self._gone:
                    return {"closed": True}
                self._workers.add(worker)
                free = next((s for s in self._slots.values() if s.state == PENDING), None)
                if free is not None and self._weights is not None:
                    free.give(worker, self._clock())
                    self._check()
                    fresh = None if known == self._weights_id else self._weights
                    return {"lease": free.lease, "weights_id": self._weights_id, "weights": fresh}
                left = deadline - self._clock()
                if left <= 0:
                    return {"lease": None}
                await self._wait(left)

    async def deliver(self, worker: str, rollouts: Rollouts) -> bool:
        """A scored slice comes back; False when it is late or of another incarnation, and was dropped."""
        async with self._changed:
            made_with, lease = rollouts.weights_id, rollouts.lease
            if self._weights_id is None or made_with.incarnation != self._incarnation:
                self.counts["dropped_incarnation"] += 1
                return False
            slot = self._held(worker, lease.id(made_with.incarnation))
            if slot is None:
                self.counts["dropped_late"] += 1
                return False
            if not 0 <= lease.step - made_with.policy_version <= self.lag:  # a lease is given out with its weights
                self._violated(f"lease {lease.step}/{lease.number} was generated with version "
                               f"{made_with.policy_version}, at a lag of {self.lag}")  # fmt: skip
            slot.fill(rollouts)
            self._moved = self._clock()
            self.counts["delivered"] += 1
            self._check()
            self._changed.notify_all()
            return True

    async def give_back(self, worker: str, lease: LeaseId, why: str) -> None:
        """A worker could not go on with it: pending again, as often as workers may die of it."""
        async with self._changed:
            slot = self._held(worker, lease)
            if slot is None:
                return
            slot.returned += 1
            if slot.returned >= self.quarantine_after:
                self._fail(WorkFailed(f"a lease of step {lease.step} was given back {slot.returned} times: {why}",
                                      key="lease", value=f"{lease.step}/{lease.number}",
                                      remedy=f"look at the rollout workers' logs in {LOGS}"))  # fmt: skip
            self._redo(slot)
            self._check()
            self._changed.notify_all()

    async def weights_lost(self, worker: str, lease: LeaseId, weights_id: WeightsId) -> None:
        """A worker could not have the weights, because who put them has died: nobody gets them any more. The next
        learner publishes its own; where it still lives, its next `take` tells it to."""
        async with self._changed:
            slot = self._held(worker, lease)
            if slot is not None:
                self._redo(slot)
            if self._weights_id == weights_id:
                self._weights_id = self._weights = None
            self._check()
            self._changed.notify_all()

    async def take(
        self, step: int, rank: int, size: int, timeout_s: float, incarnation: int | None = None,
        wait_s: float = math.inf,
    ) -> StepPart | Answer:  # fmt: skip
        """This rank's slices of a step, once all of them are ready or set aside.

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
            asked = self._heard = self._clock()
            if self._asked != (step, incarnation):  # while the learner was busy nobody waited for anything
                self._asked, self._moved = (step, incarnation), asked
            while True:
                self._expire()
                if self._failure:
                    raise self._failure
                slots = [s for s in self._slots.values() if s.lease.step == step and s.lease.number % size == rank]
                if incarnation is not None and (self._weights_id is None or self._incarnation != incarnation):
                    slots = []  # rank 0 of the restarted learner has not called `reset` yet
                if slots and all(s.state in (READY, QUARANTINED, CONSUMED) for s in slots):
                    break
                now = self._clock()
                if now - self._moved > timeout_s:
                    raise WorkFailed(f"step {step} got no further for so long: {self._who_waits()}",
                                     key="cluster.stall_timeout_s", value=timeout_s,
                                     remedy="raise it where that is slow and not stuck")  # fmt: skip
                if now - asked >= wait_s:
                    return "waiting"
                await self._wait(1.0)
            if all(s.state == QUARANTINED for s in self._slots.values() if s.lease.step == step):
                raise WorkFailed("every lease of it was set aside: there is nothing to learn from", key="step",
                                 value=step, remedy=f"look at the rollout workers' logs in {LOGS}")  # fmt: skip
            for slot in slots:
                if slot.state == READY:
                    slot.state = CONSUMED
            self._check()
            aside = tuple(s.lease.number for s in slots if s.state == QUARANTINED)
            return StepPart(tuple(s.rollouts for s in slots if s.rollouts is not None), aside)

    async def worker_lost(self, worker: str, suspicious: bool = True) -> None:
        """A worker died: what it held is pending again, as another attempt. What it generated is suspected of having
        killed it, and quarantined after some deaths; what only waited for its rewards is not.

        Args:
            suspicious: False when it was sent home.
        """
        async with self._changed:
            self._gone.add(worker)
            self._workers.discard(worker)
            self.counts["workers_lost" if suspicious else "workers_sent_home"] += 1
            for slot in self._slots.values():
                if slot.state != LEASED or slot.holder != worker:
                    continue
                if suspicious and slot.doing == GENERATES:
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

    async def doing(self, worker: str, lease: LeaseId, what: str) -> bool:
        """What the holder of a lease is at now, said every few seconds; told when a run stalls.

        Returns:
            False when it does not hold that lease any more: nobody waits for what it does.
        """
        slot = self._held(worker, lease)
        if slot is None:
            self.counts["dropped_while_scored"] += 1
            return False
        slot.hear(what, self._clock())
        return True

    async def close(self) -> None:
        """The run is over: workers asking for leases are sent home."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def status(self) -> dict[str, Any]:
        """For log and terminal.

        Returns:
            counts, of what happened since the learner's start `counted_from` (its incarnation; None before the first):
            an Exchange that was started again begins at nothing. `learner_silent_s`: since the learner last called;
            None when it never did. workers: rollout workers that have asked for leases and are still there.
        """
        return {
            "learner_silent_s": None if self._heard is None else self._clock() - self._heard,
            "states": self._states(),
            "workers": len(self._workers),
            "counts": dict(self.counts),
            "counted_from": None if self._first < 0 else self._first,
            "quarantined": list(self.quarantined),
        }

    def _held(self, worker: str, lease: LeaseId) -> Slot | None:
        """The slot of what a worker says it holds; None where that is another's by now, or of another incarnation."""
        slot = self._slots.get((lease.step, lease.number))
        if slot is None or slot.state != LEASED or slot.holder != worker:
            return None
        return slot if slot.lease.id(self._incarnation) == lease else None

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
        now = self._clock()
        return "; ".join(slot.who(now) for slot in held) or f"leases are {self._states()}"

    def _redo(self, slot: Slot) -> None:
        slot.redo()
        self.counts["leases_redone"] += 1

    def _give_up(self, slot: Slot, reason: str) -> None:
        """A worker died of it, or beside it."""
        self._redo(slot)
        slot.deaths += 1
        if slot.deaths >= self.quarantine_after:
            slot.state, self._moved = QUARANTINED, self._clock()
            self.counts["quarantined"] += 1
            self.quarantined.append({"step": slot.lease.step, "images": slot.lease.image_ids, "reason": reason})
            print(f"step {slot.lease.step}: {len(slot.lease.prompts)} images are set aside, {reason}: "
                  f"{', '.join(slot.lease.image_ids[:3])} ...", flush=True)  # fmt: skip

    def _expire(self) -> None:
        now = self._clock()
        late = [s for s in self._slots.values() if s.state == LEASED and now - s.heard > self.lease_timeout_s]
        for slot in late:
            self.counts["leases_expired"] += 1
            slot.expired += 1
            if slot.expired >= self.quarantine_after:
                # nobody died of it: to drop its images would hide that leases take longer than they may
                self._fail(WorkFailed(
                    f"a lease of step {slot.lease.step} took longer than that, {slot.expired} times over; the last "
                    f"time {slot.who(now)}", key="cluster.lease_timeout_s", value=self.lease_timeout_s,
                    remedy="raise it, or lower scst.lease_size",
                ))  # fmt: skip
            self._redo(slot)
        if late:
            self._check()
            self._changed.notify_all()

    def _forget(self, version: int) -> None:
        """The learner has learned from all steps before `version`."""
        for key in [key for key in self._slots if key[0] < version]:
            slot = self._slots.pop(key)
            if slot.state not in (CONSUMED, QUARANTINED):
                self._violated(f"lease {key[0]}/{key[1]} is {slot.state}, and the learner has left its step behind")
            self._sizes.pop(key[0], None)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), min(seconds, 1.0))
        except TimeoutError:
            return  # looked again because leases may have expired

    def _check(self) -> None:
        """Every prompt of every open step is in exactly one state; a violation ends the run."""
        if wrong := violation(self._slots.values(), self._sizes):
            self._violated(wrong)

    def _violated(self, wrong: str) -> NoReturn:
        error = WorkFailed(wrong, key="exchange", remedy="this is a fault of raycap's; please report it")
        self._fail(error)
        raise error
