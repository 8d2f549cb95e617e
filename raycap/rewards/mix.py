"""The weights w_c of the reward components by step: constant, or on a schedule.

A schedule is a function of the step (linear, step), or of what `select` showed so far (plateau): that much is state,
which belongs to the learner's checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raycap.recipe import RewardRecipe, ScheduleRecipe


class Mix:
    """Weights by component, and what moves them: the w_c(step) of A = Σ_c w_c (r_c − baseline_c). (Our own.)

    Args:
        rewards: the recipe's components.
        total_steps: of the run; where a linear schedule without an `end` arrives.
    """

    def __init__(self, rewards: Mapping[str, RewardRecipe], total_steps: int = 1) -> None:
        self.rewards, self.total_steps = dict(rewards), total_steps
        self._plateaus = {n: _Plateau(r.schedule) for n, r in self.rewards.items() if _is_plateau(r.schedule)}

    @classmethod
    def constant(cls, weights: Mapping[str, float]) -> Mix:
        """Weights that never move."""
        return cls({name: RewardRecipe(weight=weight) for name, weight in weights.items()})

    @property
    def names(self) -> list[str]:
        return list(self.rewards)

    @property
    def has_state(self) -> bool:
        """Whether a weight hangs on what `select` showed."""
        return bool(self._plateaus)

    def at(self, step: int) -> dict[str, float]:
        """Weights of the update that makes version `step` (1, 2, ...), which the log calls by that number.

        Linear: w + (to − w) · min(1, max(0, (step − start) / max(1, end − start))). Step: that of the last `at` ≤ step.
        Plateau: `to` once it has switched. Before that, and without a schedule: w.
        """
        return {name: self._weight(name, reward, step) for name, reward in self.rewards.items()}

    def look(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        """A look at `select` after the update `step` (0: before the first); new weights of what it switched.

        Args:
            figures: at least those that plateaus of this mix watch.
        """
        switched = [name for name, plateau in self._plateaus.items() if plateau.look(step, figures)]
        return {name: self.at(step + 1)[name] for name in switched}

    def _weight(self, name: str, reward: RewardRecipe, step: int) -> float:
        schedule = reward.schedule
        if schedule is None:
            return reward.weight
        if schedule.kind == "step":
            passed = [at for at in schedule.at if at <= step]
            return schedule.at[max(passed)] if passed else reward.weight
        assert schedule.to is not None  # the recipe sees to it
        if schedule.kind == "plateau":
            return schedule.to if self._plateaus[name].switched_at is not None else reward.weight
        end = self.total_steps if schedule.end is None else schedule.end
        share = (step - schedule.start) / max(1, end - schedule.start)
        return reward.weight + (schedule.to - reward.weight) * min(1.0, max(0.0, share))

    def state_dict(self) -> dict[str, Any]:
        return {name: plateau.state_dict() for name, plateau in self._plateaus.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, plateau in self._plateaus.items():
            plateau.load_state_dict(state[name])


def _is_plateau(schedule: ScheduleRecipe | None) -> bool:
    return schedule is not None and schedule.kind == "plateau"


class _Plateau:
    """Switches once, when the metric has not become better by `min_gain` for `patience` looks."""

    def __init__(self, schedule: ScheduleRecipe | None) -> None:
        assert schedule is not None
        self.schedule = schedule
        self.best, self.since = -math.inf, 0
        self.switched_at: int | None = None

    def look(self, step: int, figures: Mapping[str, float]) -> bool:
        if self.switched_at is not None:
            return False
        metric = self.schedule.metric
        value = figures[metric] if metric == "select_cider" else -figures[metric]
        if value > self.best + self.schedule.min_gain:
            self.best, self.since = value, 0
            return False
        self.since += 1
        if self.since < self.schedule.patience:
            return False
        self.switched_at = step
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "switched_at": self.switched_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.since, self.switched_at = state["best"], state["since"], state["switched_at"]
