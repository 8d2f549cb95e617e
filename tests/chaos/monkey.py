"""What kills processes of a run by a seeded plan, paced by the steps that the run has logged."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raycap.cluster.run import run_recipe
from tests.processes import processes

TITLES = {
    "rollout worker": "ray::RolloutActor",
    "reward worker": "ray::RewardWorker",
    "Exchange": "ray::Exchange",
    "learner": "ray::RayTrainWorker",
}
KILLS, SEED = int(os.environ.get("RAYCAP_CHAOS_KILLS", "4")), int(os.environ.get("RAYCAP_CHAOS_SEED", "0"))
STEPS_A_KILL, TAIL = 15, 60
"""Steps between two kills; and after the last one, which waits until what it kills has been started again."""


@dataclass(frozen=True)
class Kill:
    """A kill of one of `kind`'s processes, so long after the run has logged a step."""

    kind: str
    step: int
    pause_s: float
    which: float


def planned(kinds: list[str], kills: int, seed: int) -> list[Kill]:
    """Each kind in turn, shuffled. One in three comes on the heels of the one before, in the middle of its repair."""
    draws = np.random.default_rng(seed)
    order = [str(kind) for _ in range(-(-kills // len(kinds))) for kind in draws.permutation(kinds)][:kills]
    plan: list[Kill] = []
    for number, kind in enumerate(order):
        pause, which, at_once = float(draws.uniform(0, 0.5)), float(draws.uniform()), draws.uniform() < 1 / 3
        before = plan[-1].step if plan else 0
        step = before if at_once and plan else number * STEPS_A_KILL + int(draws.integers(1, STEPS_A_KILL))
        plan.append(Kill(kind, step, pause, which))
    return plan


def steps_for(kills: int) -> int:
    """As long as a run must be that so many kills are planned for."""
    return STEPS_A_KILL * kills + TAIL


class Monkey(threading.Thread):
    """Kills processes of the run in `folder` as planned."""

    def __init__(self, folder: Path, plan: list[Kill]) -> None:
        super().__init__(daemon=True)
        self.folder, self.plan, self.killed, self.over = folder, plan, Counter[str](), threading.Event()

    def run(self) -> None:
        for kill in self.plan:
            while logged(self.folder) < kill.step:
                if self.over.wait(0.02):
                    return
            self.over.wait(kill.pause_s)
            while not self._kills(kill):  # it is being started again
                if self.over.wait(0.1):
                    return

    def _kills(self, kill: Kill) -> bool:
        alive = sorted(processes(TITLES[kill.kind]))
        if not alive:
            return False
        try:
            os.kill(alive[int(kill.which * len(alive))], signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed[kill.kind] += 1
        return True


def logged(folder: Path) -> int:
    """The last step in a log that is being written, and cut by those who go on from a checkpoint; -1 where none is."""
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
    except OSError:
        return -1
    for line in reversed(lines):
        try:
            if (step := json.loads(line).get("step")) is not None:
                return int(step)
        except ValueError:
            continue
    return -1


def ravaged(run: Any, plan: list[Kill]) -> Monkey:
    """Do the run, with all of the plan's kills."""
    monkey = Monkey(run.path("scst", 0), plan)
    monkey.start()
    try:
        run_recipe(run.recipe)
    finally:
        monkey.over.set()
        monkey.join(timeout=10)
    assert sum(monkey.killed.values()) == len(plan), f"the run was over before: {monkey.killed}"
    return monkey
