"""How long a step of the actor–learner loop takes, from who does what in it and how many do it.

L leases a step, lag n; W rollout workers, who load new weights in w seconds and generate a lease in g; a pool of P_c
actors a component c, who score a lease in r_c; a worker holds k + 1 leases at most; a learner is busy for e seconds a
step. Steps are the customers of a closed system with n + 1 of them in it, and the larger of what its busiest station
and what its whole length allow (the asymptotic bounds of operational analysis, Denning and Buzen 1978) is nearly met:

    step_s ≈ max( (L·g + min(W, L)·w) / W,           no worker is ever idle
                  L·r_c / P_c,                        no actor of a pool is
                  L·(g + r_c) / (W·(k + 1)),          no worker holds fewer leases than it may
                  e,                                  the learner is never idle
                  (a + e) / (n + 1) )                 each step passes through all of them

    a = w + max_c max( ⌈L/W⌉·g + r_c,  g + ⌈L/P_c⌉·r_c,  L·(g + r_c) / (W·(k + 1)) )      a step that is there alone
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

ROLLOUT, LEARNER, WEIGHTS, AHEAD = "rollout", "learner", "weights", "leases_ahead"
"""Parts that are no reward component; those are `reward/NAME`."""


@dataclass(frozen=True)
class Pool:
    """Actors of a reward component, and the seconds that one needs for a lease."""

    actors: int
    score_s: float


@dataclass(frozen=True)
class Pipeline:
    """A step's work, in seconds, and who does it.

    Attributes:
        leases: of a step.
        lag: `scst.max_policy_lag`.
        workers: that generate.
        generate_s: of a lease.
        load_s: of new weights, by each worker that has a lease of the step.
        pools: by component.
        learn_s: of a step: update and publication.
        sometimes_s: of a step, on the mean: what the learner does at some steps only.
        ahead: leases of a worker whose rewards may be out while it generates another; None where nobody knows.
    """

    leases: int
    lag: int
    workers: int
    generate_s: float
    load_s: float
    pools: Mapping[str, Pool]
    learn_s: float
    sometimes_s: float = 0.0
    ahead: int | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Pipeline | None:
        """That of a learner's log record, or of means over several; None where it does not say who there was.

        Args:
            record: leases, max_policy_lag, leases_ahead (may be missing); workers/rollout, workers/reward/NAME;
                seconds/generate, /weights and /reward/NAME (sums over leases), /wait, /learn, /publish and `SOMETIMES`.
        """
        if any(record.get(key) is None for key in _NEEDED):
            return None
        leases, workers = round(record["leases"]), round(record["workers/rollout"])
        names = [key.removeprefix(_REWARD) for key in record if key.startswith(_REWARD)]
        actors = {name: round(record.get(f"workers/reward/{name}", 0)) for name in names}
        if min(leases, workers, *actors.values()) < 1:
            return None
        ahead = record.get("leases_ahead")
        return cls(
            leases, round(record["max_policy_lag"]), workers,
            generate_s=record["seconds/generate"] / leases,
            load_s=record.get("seconds/weights", 0.0) / min(workers, leases),
            pools={name: Pool(actors[name], record[_REWARD + name] / leases) for name in names},
            learn_s=record["seconds/learn"] + record["seconds/publish"],
            sometimes_s=sum(record.get(f"seconds/{part}", 0.0) for part in SOMETIMES),
            ahead=None if ahead is None else round(ahead),
        )  # fmt: skip

    def idle(self, wait_s: float) -> tuple[float, float]:
        """Shares of a step in which the learner waits, for so many seconds, and in which a worker does."""
        whole_s = max(wait_s + self.learner_s, 1e-9)
        return wait_s / whole_s, max(0.0, 1 - self.worker_s / whole_s)

    @property
    def open_leases(self) -> int:
        """At a time: more workers than that have nothing to do."""
        return self.leases * (self.lag + 1)

    @property
    def alone_s(self) -> float:
        """From the first lease of a step to its last reward, where nothing else is under way."""
        rounds = math.ceil(self.leases / self.workers)
        longest = rounds * self.generate_s
        for pool in self.pools.values():
            longest = max(longest, rounds * self.generate_s + pool.score_s,
                          self.generate_s + math.ceil(self.leases / pool.actors) * pool.score_s)  # fmt: skip
            if self.ahead is not None:
                held = min(self.leases, self.workers * (self.ahead + 1))
                longest = max(longest, self.leases * (self.generate_s + pool.score_s) / held)
        return self.load_s + longest

    @property
    def learner_s(self) -> float:
        """Of a step: all that the learner does."""
        return self.learn_s + self.sometimes_s

    @property
    def worker_s(self) -> float:
        """Of a step: what a worker does, on the mean."""
        return (self.leases * self.generate_s + min(self.workers, self.leases) * self.load_s) / self.workers

    @property
    def step_s(self) -> float:
        """Of a run, once it runs smoothly."""
        busy = [self.worker_s, self.learner_s]
        busy += [self.leases * pool.score_s / pool.actors for pool in self.pools.values()]
        if self.ahead is not None:
            held = self.workers * (self.ahead + 1)
            busy += [self.leases * (self.generate_s + pool.score_s) / held for pool in self.pools.values()]
        return max(*busy, (self.alone_s + self.learner_s) / (self.lag + 1))

    def doubled(self, part: str) -> Pipeline:
        """With twice the capacity of one part: twice as many, or twice as fast where more would have nothing to do."""
        if part == LEARNER:
            return replace(self, learn_s=self.learn_s / 2, sometimes_s=self.sometimes_s / 2)
        if part == WEIGHTS:
            return replace(self, load_s=self.load_s / 2)
        if part == AHEAD:
            return self if self.ahead is None else replace(self, ahead=2 * self.ahead + 1)
        if part == ROLLOUT:
            few = self.workers < self.open_leases
            return replace(self, workers=2 * self.workers) if few else replace(self, generate_s=self.generate_s / 2)
        pool = self.pools[part.removeprefix("reward/")]
        few = pool.actors < self.open_leases
        more = replace(pool, actors=2 * pool.actors) if few else replace(pool, score_s=pool.score_s / 2)
        return replace(self, pools={**self.pools, part.removeprefix("reward/"): more})

    def gain(self, other: Pipeline) -> float:
        """Share of a step's seconds that another saves."""
        return 1 - other.step_s / self.step_s if self.step_s > 0 else 0.0


SOMETIMES = ("look", "checkpoint", "log")
"""What the learner does between two steps, at some of them more than at others."""
_REWARD = "seconds/reward/"
_SECONDS = ("generate", "wait", "learn", "publish")
_NEEDED = ("leases", "max_policy_lag", "workers/rollout", *(f"seconds/{part}" for part in _SECONDS))
