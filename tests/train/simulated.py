"""The actor–learner loop as events in time: who waits for whom is known, because nothing else happens.

Rules are those of `raycap.cluster`: leases of step s open with version s − lag, in order; a worker fetches the newest
weights when it leases, and holds `ahead` + 1 leases at most; a pool's actors are asked in turn by each worker, and each
works off its queue; the learner learns, publishes, and every `look_every` steps looks at `select`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Line:
    """What there is. Seconds: of a lease's generation, of loading weights, of a lease at each component ("pools": how
    many actors, seconds), of an update, of publishing, of a look. `spread`: relative, of each of them."""

    leases: int
    lag: int
    workers: int
    generate: float
    learn: float
    pools: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    load: float = 0.0
    publish: float = 0.0
    look: float = 0.0
    look_every: int = 10
    ahead: int = 2
    spread: float = 0.0

    def doubled(self, part: str) -> Line:
        """Twice the actors of a part; where they are as many as leases can be open, actors that are twice as fast."""
        open_leases = self.leases * (self.lag + 1)
        if part == "learner":
            return replace(self, learn=self.learn / 2, publish=self.publish / 2, look=self.look / 2)
        if part == "weights":
            return replace(self, load=self.load / 2)
        if part == "leases_ahead":
            return replace(self, ahead=2 * self.ahead + 1)
        if part == "rollout":
            few = self.workers < open_leases
            return replace(self, workers=2 * self.workers) if few else replace(self, generate=self.generate / 2)
        name = part.removeprefix("reward/")
        actors, seconds = self.pools[name]
        return replace(self, pools={**self.pools, name: (2 * actors, seconds) if actors < open_leases
                                    else (actors, seconds / 2)})  # fmt: skip

    @property
    def parts(self) -> list[str]:
        return ["rollout", "learner", *(["weights"] if self.load else []), *(f"reward/{name}" for name in self.pools)]


class Simulation:
    """A run of a line. `step_s`: seconds of a step once it runs smoothly; `records`: what the learner logs."""

    def __init__(self, line: Line, steps: int = 60, seed: int = 0) -> None:
        self.line, self.steps = line, steps
        self._draw = np.random.default_rng(seed)
        self._events: list[tuple[float, int, Any]] = []
        self._order = itertools.count()
        self._pending: list[tuple[int, int]] = []
        self._version, self._opened = -1, 0
        self._knows, self._holds = [-1] * line.workers, [0] * line.workers
        self._generating = [False] * line.workers
        self._turns = {name: list(range(line.workers)) for name in line.pools}  # processes begin at different actors
        self._free = {name: [0.0] * actors for name, (actors, _) in line.pools.items()}
        self._done: dict[int, list[dict[str, float]]] = defaultdict(list)
        self._asked: float | None = None
        self._step = 0
        self.records: list[dict[str, Any]] = []
        self._begun: list[float] = []
        self._publish(0.0)
        self._ask(0.0)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)
        round_ = math.lcm(line.lag + 1, line.look_every if line.look else 1)  # what repeats itself
        count = max(1, (steps - 20) // round_) * round_
        self.step_s = (self._begun[-1] - self._begun[-1 - count]) / count
        self.records = self.records[-count:]

    def _at(self, time: float, event: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _takes(self, seconds: float) -> float:
        return seconds * max(0.1, 1 + self.line.spread * float(self._draw.standard_normal()))

    def _publish(self, now: float) -> None:
        self._version += 1
        while self._opened < min(self.steps, self._version + self.line.lag + 1):
            self._pending += [(self._opened, number) for number in range(self.line.leases)]
            self._opened += 1
        for worker in range(self.line.workers):
            self._lease(worker, now)

    def _lease(self, worker: int, now: float) -> None:
        if self._generating[worker] or self._holds[worker] > self.line.ahead or not self._pending:
            return
        step, _ = self._pending.pop(0)
        self._generating[worker], self._holds[worker] = True, self._holds[worker] + 1
        load = self._takes(self.line.load) if self._knows[worker] != self._version else 0.0
        lag = step - self._version
        self._knows[worker] = self._version
        spent = {"weights": load, "generate": self._takes(self.line.generate), "lag": lag}
        self._at(now + load + spent["generate"], lambda then: self._generated(worker, step, spent, then))

    def _generated(self, worker: int, step: int, spent: dict[str, float], now: float) -> None:
        self._generating[worker] = False
        scored = now
        for name, (actors, seconds) in self.line.pools.items():
            turn = self._turns[name][worker] % actors
            self._turns[name][worker] += 1
            took = self._takes(seconds)
            self._free[name][turn] = max(now, self._free[name][turn]) + took
            spent[f"reward/{name}"] = took
            scored = max(scored, self._free[name][turn])
        spent["reward"] = scored - now
        self._at(scored, lambda then: self._delivered(worker, step, spent, then))
        self._lease(worker, now)

    def _delivered(self, worker: int, step: int, spent: dict[str, float], now: float) -> None:
        self._holds[worker] -= 1
        self._done[step].append(spent)
        self._lease(worker, now)
        self._learn(now)

    def _ask(self, now: float) -> None:
        self._asked = now
        self._learn(now)

    def _learn(self, now: float) -> None:
        if self._asked is None or len(self._done[self._step]) < self.line.leases:
            return
        line, asked, self._asked = self.line, self._asked, None
        self._begun.append(now)
        learn, publish = self._takes(line.learn), self._takes(line.publish)
        looks = line.look if (self._step + 1) % line.look_every == 0 else 0.0
        self._log(now - asked, learn, publish, looks, self._done.pop(self._step))
        self._step += 1
        out = now + learn + publish
        self._at(out, self._publish)
        if self._step < self.steps:
            self._at(out + looks, self._ask)

    def _log(self, wait: float, learn: float, publish: float, look: float, leases: list[dict[str, float]]) -> None:
        line, whole = self.line, wait + learn + publish
        sums = {key: sum(lease[key] for lease in leases) for key in leases[0]}
        busy = sums["generate"] + sums["weights"]
        self.records.append({
            "step": self._step + 1, "seconds/wait": wait, "seconds/learn": learn, "seconds/publish": publish,
            **{f"seconds/{key}": value for key, value in sums.items() if key != "lag"},
            **({"seconds/look": look} if look else {}),
            "idle/learner": wait / whole, "idle/actors": max(0.0, 1 - busy / (line.workers * whole)),
            "workers/rollout": line.workers, **{f"workers/reward/{n}": actors for n, (actors, _) in line.pools.items()},
            "leases": line.leases, "max_policy_lag": line.lag, "leases_ahead": line.ahead,
            "policy_lag": sums["lag"] / line.leases,
        })  # fmt: skip
