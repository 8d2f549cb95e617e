from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.errors import RecipeError
from raycap.rl.advantages import baseline_of, combine
from raycap.types import ComponentScores

REWARDS = np.array([[1, 2, 6], [0, 0, 3]], np.float32)
GREEDY = np.array([2, 1], np.float32)


def scores(rewards: list[list[float]], greedy: list[float]) -> ComponentScores:
    return ComponentScores(np.array(rewards, np.float32), np.array(greedy, np.float32))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("greedy", [[2, 2, 2], [1, 1, 1]]),
        ("mean", [[3, 3, 3], [1, 1, 1]]),
        ("leave_one_out", [[4, 3.5, 1.5], [1.5, 1.5, 0]]),
    ],
)
def test_baselines_by_hand(kind: str, expected: list[list[float]]) -> None:
    baseline = baseline_of(kind, REWARDS, GREEDY)
    assert baseline.dtype == np.float32
    np.testing.assert_array_equal(np.broadcast_to(baseline, REWARDS.shape), np.array(expected, np.float32))


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=6), st.data())
def test_leave_one_out_does_not_know_its_own_reward(rewards: list[float], data: st.DataObject) -> None:
    """What makes it unbiased: the baseline of sample k is the same whatever sample k got."""
    place = data.draw(st.integers(0, len(rewards) - 1))
    changed = list(rewards)
    changed[place] += 7.0
    before, after = (
        baseline_of("leave_one_out", np.array([r], np.float32), np.zeros(1, np.float32))[0, place]
        for r in (rewards, changed)
    )
    others = [r for k, r in enumerate(rewards) if k != place]
    assert before == pytest.approx(sum(others) / len(others), abs=1e-4)
    assert after == pytest.approx(before, abs=1e-4)


def test_leave_one_out_of_one_sample_and_unknown_names_are_refused() -> None:
    with pytest.raises(RecipeError, match="num_samples=2") as refused:
        baseline_of("leave_one_out", REWARDS[:, :1], GREEDY)
    assert refused.value.key == "scst.baseline"
    with pytest.raises(RecipeError, match=r"scst.baseline = 'critic': expected one of greedy"):
        baseline_of("critic", REWARDS, GREEDY)
    with pytest.raises(RecipeError, match=r"scst.scaling = 'batch'"):
        combine({"a": ComponentScores(REWARDS, GREEDY)}, {"a": 1.0}, baseline="mean", scaling="batch")
    with pytest.raises(RecipeError, match="no reward component"):
        combine({}, {}, baseline="mean")


def test_two_components_one_of_them_silent_about_one_image_by_hand() -> None:
    cider = scores([[1, 3], [2, 0]], [2, 1])
    clip = scores([[4, math.nan], [2, 6]], [1, 2])
    got = combine({"cider": cider, "clip": clip}, {"cider": 1.0, "clip": 0.5}, baseline="greedy")
    # image 0: cider alone, its weight as it was: [1, 3] − 2; image 1: [2, 0] − 1 + ([2, 6] − 2)/2
    np.testing.assert_array_equal(got.values, np.array([[-1, 1], [1, 1]], np.float32))
    assert got.values.dtype == np.float32
    assert got.kept.tolist() == [True, True]
    assert got.applied == {"cider": 2, "clip": 1}
    assert got.shares == {"cider": pytest.approx(4 / 6), "clip": pytest.approx(2 / 6)}


def test_a_component_silent_about_the_greedy_caption_is_out_for_the_image_under_every_baseline() -> None:
    cider = scores([[1, 3], [2, 0]], [2, math.nan])
    for baseline in ("greedy", "leave_one_out", "mean"):
        got = combine({"cider": cider}, {"cider": 1.0}, baseline=baseline)
        assert got.kept.tolist() == [True, False], baseline
        assert got.values[1].tolist() == [0, 0]
        assert got.shares == {"cider": 1.0}
        assert got.applied == {"cider": 1}


def test_nothing_applies_anywhere() -> None:
    got = combine({"a": scores([[math.nan, 1]], [0])}, {"a": 1.0}, baseline="leave_one_out", scaling="group")
    assert got.kept.tolist() == [False]
    assert got.values.tolist() == [[0, 0]]
    assert got.shares == {"a": 0.0}


def test_group_scaling_comes_after_the_weighted_sum_by_hand() -> None:
    a, b = scores([[0, 2, 4]], [0]), scores([[3, 0, 0]], [0])
    got = combine({"a": a, "b": b}, {"a": 1.0, "b": 2.0}, baseline="mean", scaling="group")
    # a − 2 = [−2, 0, 2]; 2·(b − 1) = [4, −2, −2]; sum [2, −2, 0], standard deviation √(8/3)
    np.testing.assert_allclose(got.values, np.array([[2, -2, 0]]) / math.sqrt(8 / 3), rtol=1e-5)


@pytest.mark.parametrize("samples", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_group_scaling_makes_no_advantage_of_rounding(baseline: str, samples: int) -> None:
    """Equal rewards, whose mean in float32 is not quite theirs, beside another component's."""
    for reward in (0.1, 0.6, 1.7, 5.0, 123.4):
        tied = {"a": scores([[reward] * samples], [0]), "b": scores([[0.3 * reward] * samples], [0])}
        got = combine(tied, {"a": 1.0, "b": 0.7}, baseline=baseline, scaling="group")
        assert got.values.tolist() == [[0.0] * samples]
        assert got.kept.tolist() == [True]
    rewards = [0.6] * (samples - 1) + [0.61]
    told = combine({"a": scores([rewards], [0])}, {"a": 1.0}, baseline=baseline, scaling="group").values
    assert told[0, -1] > 0.9
    assert (told[0, :-1] < 0).all()


def test_group_scaling_wants_a_baseline_of_the_samples() -> None:
    with pytest.raises(RecipeError, match=r"scst\.scaling = 'group': needs a baseline from the samples"):
        combine({"a": scores([[0.6, 0.6]], [0.9])}, {"a": 1.0}, baseline="greedy", scaling="group")


def test_a_component_of_weight_0_keeps_no_image() -> None:
    """It watches: where no other applies there is nothing to learn from."""
    cider, watched = scores([[1, 3], [math.nan, 1]], [2, 0]), scores([[2, 0], [2, 6]], [1, 2])
    got = combine({"cider": cider, "watched": watched}, {"cider": 1.0, "watched": 0.0}, baseline="greedy")
    assert got.kept.tolist() == [True, False]
    assert got.applied == {"cider": 1, "watched": 2}


reward = st.one_of(st.floats(-5, 5, width=32), st.just(math.nan))


@given(
    st.integers(1, 4), st.integers(2, 4), st.sampled_from(["greedy", "leave_one_out", "mean"]), st.booleans(), st.data()
)
def test_combine_equals_the_slow_loop(
    images: int, samples: int, baseline: str, scaled: bool, data: st.DataObject
) -> None:
    names = ["a", "b", "c"][: data.draw(st.integers(1, 3))]
    made = {}
    for name in names:
        rewards = data.draw(
            st.lists(st.lists(reward, min_size=samples, max_size=samples), min_size=images, max_size=images)
        )
        made[name] = (rewards, data.draw(st.lists(reward, min_size=images, max_size=images)))
    weights = {name: data.draw(st.floats(-2, 2, width=32)) for name in names}
    scaled = scaled and baseline != "greedy"
    got = combine(
        {name: scores(*pair) for name, pair in made.items()}, weights, baseline=baseline,
        scaling="group" if scaled else "none",
    )  # fmt: skip
    totals = dict.fromkeys(names, 0.0)
    for image in range(images):
        sums, applied = [0.0] * samples, False
        for name in names:
            rewards, greedy = made[name][0][image], made[name][1][image]
            if any(math.isnan(value) for value in [*rewards, greedy]):
                continue
            applied |= weights[name] != 0
            for k, value in enumerate(rewards):
                others = [r for j, r in enumerate(rewards) if j != k]
                compared = {
                    "greedy": greedy,
                    "mean": sum(rewards) / samples,
                    "leave_one_out": sum(others) / len(others),
                }
                sums[k] += weights[name] * (value - compared[baseline])
                totals[name] += abs(weights[name] * (value - compared[baseline]))
        spread = float(np.std(sums))
        if scaled and spread < 1e-3:  # the quotient of two roundings
            continue
        expected = [value / spread for value in sums] if scaled else sums
        np.testing.assert_allclose(
            got.values[image], expected, rtol=1e-3 if scaled else 1e-5, atol=1e-3 if scaled else 1e-4
        )
        assert bool(got.kept[image]) == applied
    if sum(totals.values()) > 1e-2:
        for name in names:
            assert got.shares[name] == pytest.approx(totals[name] / sum(totals.values()), abs=1e-3)
