"""Where a step's seconds went: worked by hand, on one rank and on several."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raycap.cluster.step_seconds import step_seconds
from raycap.recipe import Recipe
from raycap.recipe.load import validate
from raycap.train.group import Alone
from raycap.types import WeightsId

LAP = (10.0, {"wait": 4.0, "learn": 3.0, "publish": 0.5, "checkpoint": 2.0})


def recipe_of(**cluster: Any) -> Recipe:
    rewards = {"cider": {}, "length": {"workers": 3}}
    values: dict[str, Any] = {"name": "x", "stages": ["scst"], "data": {"format": "scenes"}, "rewards": rewards}
    return validate({**values, "features": {"encoder": "test_vit"}, "cluster": {"rollout_workers": 4, **cluster}})


def rollout(version: int, **seconds: float) -> Any:
    scores = {"cider": SimpleNamespace(seconds=0.25), "length": SimpleNamespace(seconds=1.0)}
    return SimpleNamespace(seconds=seconds, scores=scores, weights_id=WeightsId(0, version))


ROLLOUTS = [rollout(6, weights=1.0, generate=5.0, reward=2.0), rollout(7, generate=6.0, reward=1.0)]


def test_a_step_by_hand() -> None:
    told = step_seconds(ROLLOUTS, 7, LAP, recipe_of(), Alone())
    own = {part: told[f"seconds/{part}"] for part in ("wait", "learn", "publish", "look", "log", "checkpoint")}
    assert own == {"wait": 4.0, "learn": 3.0, "publish": 0.5, "look": 0.0, "log": 0.0, "checkpoint": 2.0}
    actors = {part: told[f"seconds/{part}"] for part in ("weights", "generate", "reward")}
    assert actors == {"weights": 1.0, "generate": 11.0, "reward": 3.0}
    assert (told["seconds/reward/cider"], told["seconds/reward/length"]) == (0.5, 2.0)
    assert told["idle/learner"] == pytest.approx(0.4)
    assert told["idle/actors"] == pytest.approx(1 - 12 / 40)
    assert (told["policy_lag"], told["leases"], told["max_policy_lag"]) == (0.5, 2, 0)
    assert (told["workers/rollout"], told["workers/reward/cider"], told["workers/reward/length"]) == (4, 1, 3)
    assert "collocated" not in told


def test_workers_that_are_not_there_do_not_idle() -> None:
    told = step_seconds(ROLLOUTS, 7, LAP, recipe_of(autoscaling=True), Alone(), workers=2)
    assert told["idle/actors"] == pytest.approx(1 - 12 / 20)
    assert told["workers/rollout"] == 2


def test_ranks_add_up(on_ranks: Any) -> None:
    alone = step_seconds(ROLLOUTS, 7, LAP, recipe_of(), Alone())
    told = on_ranks(2, lambda group: step_seconds(ROLLOUTS[group.rank :: 2], 7, LAP, recipe_of(), group))
    assert told == [alone, alone]


def test_a_step_of_which_all_was_set_aside() -> None:
    told = step_seconds([], 7, LAP, recipe_of(), Alone())
    assert (told["policy_lag"], told["leases"], told["idle/actors"]) == (0.0, 0, 1.0)
