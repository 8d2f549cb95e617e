"""Weights by step: constant, linear, stepped, on a plateau; their state and their faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raycap.errors import RecipeError
from raycap.recipe import RewardRecipe, ScheduleRecipe, load_recipe
from raycap.rewards.mix import Mix


def mix(total: int = 100, weight: float = 1.0, **schedule: Any) -> Mix:
    return Mix({"r": RewardRecipe(weight=weight, schedule=ScheduleRecipe(**schedule) if schedule else None)}, total)


def weights(made: Mix, *steps: int) -> list[float]:
    return [made.at(step)["r"] for step in steps]


def test_constant_weights_do_not_move() -> None:
    made = Mix.constant({"cider": 1.0, "clip": 0.25})
    assert made.at(0) == made.at(10**6) == {"cider": 1.0, "clip": 0.25}
    assert made.names == ["cider", "clip"]
    assert not made.has_state


def test_linear_is_flat_then_straight_then_flat() -> None:
    made = mix(weight=1.0, kind="linear", to=0.0, start=10, end=30)
    assert weights(made, 0, 10, 15, 20, 30, 99) == pytest.approx([1, 1, 0.75, 0.5, 0, 0])


def test_linear_without_an_end_arrives_with_the_run() -> None:
    made = mix(total=50, weight=0.0, kind="linear", to=2.0)
    assert weights(made, 1, 25, 50) == pytest.approx([2 / 50, 1, 2])
    assert weights(made, 50) == [2.0], "the last update has the target itself"


def test_steps_hold_until_the_next_one() -> None:
    made = mix(weight=1.0, kind="step", at={20: 0.2, 10: 0.5})
    assert weights(made, 0, 9, 10, 19, 20, 500) == [1, 1, 0.5, 0.5, 0.2, 0.2]


def test_a_plateau_switches_once_after_its_patience() -> None:
    made = mix(weight=1.0, kind="plateau", to=0.1, patience=2, min_gain=0.01)
    looks = [(0, 0.50), (10, 0.60), (20, 0.605), (30, 0.59), (40, 0.9), (50, 0.1), (60, 0.1)]
    switched = [made.look(step, {"select_cider": value}) for step, value in looks]
    assert switched == [{}, {}, {}, {"r": 0.1}, {}, {}, {}]
    assert weights(made, 30) == [0.1]
    assert made.has_state


def test_a_plateau_of_a_figure_that_should_be_low() -> None:
    made = mix(weight=0.0, kind="plateau", to=1.0, patience=2, metric="select_bad_endings")
    looks = [0.5, 0.4, 0.45, 0.4]
    figures = [{"select_cider": 1.0 + n, "select_bad_endings": value} for n, value in enumerate(looks)]
    assert [made.look(step, seen) for step, seen in enumerate(figures)] == [{}, {}, {}, {"r": 1.0}]


def test_a_resumed_plateau_goes_on_where_it_was() -> None:
    looks = [0.5, 0.6, 0.59, 0.58, 0.57]
    whole = mix(kind="plateau", to=0.0, patience=3)
    for step, value in enumerate(looks):
        whole.look(step, {"select_cider": value})
    for cut in range(len(looks)):
        first, second = mix(kind="plateau", to=0.0, patience=3), mix(kind="plateau", to=0.0, patience=3)
        for step, value in enumerate(looks[:cut]):
            first.look(step, {"select_cider": value})
        second.load_state_dict(first.state_dict())
        for step, value in enumerate(looks[cut:], cut):
            second.look(step, {"select_cider": value})
        assert second.state_dict() == whole.state_dict()
    assert weights(whole, 9) == [0.0]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{kind: linear}", "needs `to`"),
        ("{kind: plateau}", "needs `to`"),
        ("{kind: step}", "needs `at`"),
        ("{kind: linear, to: 1, start: 5, end: 5}", "end = 5 must come after start = 5"),
        ("{kind: cosine, to: 1}", "'linear', 'step' or 'plateau'"),
        ("{kind: step, at: {-1: 1}}", "greater than or equal to 0"),
    ],
)
def test_schedules_that_say_too_little_are_refused(schedule: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        load_recipe("scenes", [f"rewards.cider.schedule={schedule}"], {})
    assert str(refused.value).startswith("rewards.cider.schedule")


def test_a_schedule_on_the_command_line_travels_through_json() -> None:
    recipe = load_recipe("scenes", ["rewards.cider.schedule={kind: step, at: {100: 0.5}}"], {})
    again = json.loads(json.dumps(recipe.model_dump(mode="json")))["rewards"]["cider"]
    assert RewardRecipe(**again) == recipe.rewards["cider"]
