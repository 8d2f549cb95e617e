"""The reward-hacking watch: what it says, what it keeps quiet about, and that a resume does not repeat it."""

from __future__ import annotations

import json

from raycap.rewards.watch import HackingWatch

GOOD = {"select_cider": 0.8, "select_length": 10.0, "select_bad_endings": 0.0, "select_repetition": 0.02}


def run(watch: HackingWatch, rewards: list[float], figures: list[dict[str, float]]) -> list[list[str]]:
    said = []
    for reward, held_out in zip(rewards, figures, strict=True):
        for step in (-0.01, 0.01):  # the mean of the steps between two looks counts
            watch.observe({"reward/clip/sampled": reward + step, "pg_loss": 1.0})
        said.append(watch.look({**GOOD, **held_out}))
    return said


def ciders(*values: float) -> list[dict[str, float]]:
    return [{"select_cider": value} for value in values]


def test_a_climb_while_select_falls_is_said_once() -> None:
    said = run(HackingWatch(), [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ciders(0.8, 0.8, 0.79, 0.7, 0.6, 0.5))
    assert [len(sentences) for sentences in said] == [0, 0, 0, 1, 0, 0]
    assert "clip climbed from 0.500 to 0.800" in said[3][0]
    assert "select_cider went from 0.800 to 0.700" in said[3][0]


def test_it_is_said_again_when_it_was_over_between() -> None:
    rewards = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
    said = run(HackingWatch(), rewards, ciders(0.8, 0.8, 0.8, 0.7, 0.9, 0.9, 0.9, 0.6))
    assert [len(sentences) for sentences in said] == [0, 0, 0, 1, 0, 0, 0, 1]


def test_both_rising_or_both_falling_is_no_news() -> None:
    assert not any(run(HackingWatch(), [0.5, 0.6, 0.7, 0.8], ciders(0.5, 0.6, 0.7, 0.8)))
    assert not any(run(HackingWatch(), [0.8, 0.7, 0.6, 0.5], ciders(0.8, 0.7, 0.6, 0.5)))
    assert not any(run(HackingWatch(), [0.5, 0.5, 0.5, 0.5], ciders(0.8, 0.7, 0.6, 0.5)))


def test_the_noise_of_a_look_is_no_news() -> None:
    assert not any(run(HackingWatch(), [0.5, 0.6, 0.7, 0.8, 0.9], ciders(0.80, 0.70, 0.80, 0.79, 0.80)))


def test_bad_endings_repetition_and_length_are_watched_too() -> None:
    for figure, values in (
        ("select_bad_endings", [0.0, 0.0, 0.01, 0.02]),
        ("select_repetition", [0.02, 0.02, 0.03, 0.05]),
        ("select_length", [10, 11, 12, 13]),
        ("select_length", [10, 9, 8, 7]),
    ):
        said = run(HackingWatch(), [0.5, 0.6, 0.7, 0.8], [{figure: value} for value in values])
        assert [len(sentences) for sentences in said] == [0, 0, 0, 1], figure
        assert figure in said[3][0]


def test_a_slow_drift_of_the_length_is_seen() -> None:
    """A word in every five looks: never a quarter within three looks, but 2.6 of 10 words in the end."""
    lengths = [10 + 0.2 * look for look in range(16)]
    figures = [{"select_length": length} for length in lengths]
    rewards = [0.5 + 0.05 * look for look in range(16)]
    said = run(HackingWatch(), rewards, figures)
    assert [look for look, sentences in enumerate(said) if sentences] == [13]
    assert "select_length went from 10.000 to 12.600 since the first look" in said[13][0]
    for cut in (1, 5, 13, 14):
        first, second = HackingWatch(), HackingWatch()
        before = run(first, rewards[:cut], figures[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + run(second, rewards[cut:], figures[cut:]) == said


def test_states_without_the_first_length_still_load() -> None:
    first, second = HackingWatch(), HackingWatch()
    lengths = [10, 10.5, 11, 11.5, 12, 12.5, 13, 13.5, 14, 14.5]
    run(first, [0.5] * 5, [{"select_length": length} for length in lengths[:5]])
    old = first.state_dict()
    del old["first_length"]
    second.load_state_dict(old)
    said = run(second, [0.6, 0.7, 0.8, 0.9, 1.0], [{"select_length": length} for length in lengths[5:]])
    assert [len(sentences) for sentences in said] == [0, 0, 1, 0, 0], "a quarter over the oldest look that it knows"
    assert "from 10.500 to 13.500" in said[2][0]
    empty = HackingWatch()
    empty.load_state_dict({"looks": [], "said": [], "idle": []})
    assert empty.look(GOOD) == []
    assert empty.state_dict()["first_length"] == 10.0


def test_a_component_of_weight_0_only_watches() -> None:
    def looks(weight: float, watched: list[float]) -> list[list[str]]:
        watch, said = HackingWatch(), []
        for climb, value in zip([0.5, 0.6, 0.7, 0.8], watched, strict=True):
            rewards = {"reward/clip/sampled": climb, "reward/rouge/sampled": value}
            watch.observe({**rewards, "reward/clip/weight": 1.0, "reward/rouge/weight": weight})
            said.append(watch.look(GOOD))
        return said

    falling = looks(0.0, [0.4, 0.4, 0.4, 0.3])
    assert [len(sentences) for sentences in falling] == [0, 0, 0, 1]
    assert "the reward clip climbed" in falling[3][0]
    assert "the unrewarded rouge went from 0.400 to 0.300" in falling[3][0]
    assert not any(looks(0.5, [0.4, 0.4, 0.4, 0.3])), "a rewarded component may fall while another one climbs"
    assert not any(looks(0.0, [0.3, 0.4, 0.4, 0.5])), "an unrewarded one that climbs is no news"


def test_a_resumed_watch_remembers() -> None:
    rewards, figures = [0.5, 0.6, 0.7, 0.8, 0.9], ciders(0.8, 0.8, 0.79, 0.7, 0.6)
    for cut in range(5):
        first, second = HackingWatch(), HackingWatch()
        said = run(first, rewards[:cut], figures[:cut])
        second.load_state_dict(first.state_dict())
        assert [len(s) for s in said + run(second, rewards[cut:], figures[cut:])] == [0, 0, 0, 1, 0]


def test_it_says_nothing_of_a_component_that_was_not_there_before() -> None:
    watch = HackingWatch(window=1)
    watch.look(GOOD)  # the look before the first step: no reward yet
    watch.observe({"reward/clip/sampled": 0.9})
    assert watch.look({**GOOD, "select_cider": 0.1}) == []
