"""Which images a step trains on: every image once an epoch, in leases that hang on nothing but the recipe."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.train.prompts import PromptSchedule, permutation


def schedule(count: int, batch: int, lease: int, seed: int = 0) -> PromptSchedule:
    return PromptSchedule([f"img_{n:02d}" for n in range(count)], batch_size=batch, lease_size=lease, seed=seed)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_every_image_comes_once_an_epoch(count: int, batch: int, lease: int, seed: int) -> None:
    made = schedule(count, batch, lease, seed)
    steps = -(-3 * count // batch)
    stream = [prompt for step in range(steps) for prompt in made.prompts(step)]
    for epoch in range(3):
        images = stream[epoch * count : (epoch + 1) * count]
        assert sorted(prompt.position % count for prompt in images) == list(range(count))
    assert all(prompt.image_id == f"img_{prompt.position % count:02d}" for prompt in stream)
    for step in range(steps):  # or an image that comes twice would draw the same captions twice
        assert len({prompt.position for prompt in made.prompts(step)}) == batch


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_leases_are_numbered_slices_of_the_step(count: int, batch: int, lease: int, step: int) -> None:
    made = schedule(count, batch, lease)
    leases = made.leases(step)
    assert [one.number for one in leases] == list(range(len(leases)))
    assert {one.step for one in leases} == {step}
    assert [prompt for one in leases for prompt in one.prompts] == list(made.prompts(step))
    assert [len(one.prompts) for one in leases[:-1]] == [lease] * (len(leases) - 1)
    assert 1 <= len(leases[-1].prompts) <= lease
    assert leases[0].attempt == 0


def test_a_step_s_prompts_hang_on_seed_and_step_alone() -> None:
    """Whatever was asked before, in whatever order, of whichever object: a resume repeats and loses nothing."""
    made = schedule(10, 4, 2, seed=5)
    forwards = [made.leases(step) for step in range(12)]
    backwards = [schedule(10, 4, 2, seed=5).leases(step) for step in reversed(range(12))][::-1]
    assert forwards == backwards
    assert made.leases(0) == forwards[0]
    assert [s.prompts for s in forwards[0]] != [s.prompts for s in schedule(10, 4, 2, seed=6).leases(0)]


def test_the_size_of_a_lease_changes_no_prompt() -> None:
    for step in range(6):
        assert len({schedule(10, 6, size).prompts(step) for size in (1, 2, 4, 6, 99)}) == 1


def test_epochs_have_orders_of_their_own_and_a_step_may_reach_over_the_end() -> None:
    made = schedule(10, 4, 4)
    stream = [prompt.position % 10 for step in range(5) for prompt in made.prompts(step)]
    assert stream[:10] != stream[10:]
    assert Counter(stream) == dict.fromkeys(range(10), 2)
    assert len(made.prompts(2)) == 4


def test_more_images_than_there_are_in_one_step() -> None:
    made = schedule(3, 7, 7)
    stream = made.prompts(0) + made.prompts(1) + made.prompts(2)
    assert Counter(p.position % 3 for p in stream) == dict.fromkeys(range(3), 7)
    assert len({p.position for p in made.prompts(0)}) == 7


def test_permutations_differ_in_every_argument_and_are_known() -> None:
    """A known answer: the order of a run must be the same next year and on the next machine."""
    base = permutation(1, 2, 8, 3).tolist()
    assert sorted(base) == list(range(8))
    others = [permutation(*key).tolist() for key in ((2, 2, 8, 3), (1, 3, 8, 3), (1, 2, 8, 4))]
    assert all(other != base for other in others)
    assert base == [5, 3, 1, 4, 6, 0, 2, 7]


@pytest.mark.parametrize("seed", [0, 7])
def test_permutations_are_uniform(seed: int) -> None:
    """Each of the six orders of three about as often."""
    counts = Counter(tuple(permutation(seed, epoch, 3).tolist()) for epoch in range(1200))
    assert len(counts) == 6
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 20.5  # χ² of 5 degrees, 1 in 1,000
    assert np.mean([permutation(seed, epoch, 1)[0] for epoch in range(3)]) == 0
