"""Seconds of a step from who does what: by hand, and against a simulation of events."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from raycap.train.pipeline import AHEAD, LEARNER, ROLLOUT, WEIGHTS, Pipeline, Pool
from tests.train.simulated import Line, Simulation

FOUR = Pipeline(leases=4, lag=0, workers=2, generate_s=1.0, load_s=0.0, pools={"clip": Pool(2, 1.5)}, learn_s=2.0)
"""Alone a step is generated at 1, 1, 2, 2 s; scored by two actors at 2.5, 2.5, 4, 4 s."""


def test_a_step_by_hand() -> None:
    assert FOUR.alone_s == 4.0
    assert FOUR.step_s == 6.0  # and then it is learned from
    assert replace(FOUR, lag=1).step_s == 3.0  # two steps in 6 s, or four leases of 1.5 s in a pool of two
    assert replace(FOUR, lag=4).step_s == 3.0
    assert replace(FOUR, lag=4, pools={"clip": Pool(4, 1.5)}).step_s == 2.0  # the learner, and the workers
    assert FOUR.idle(wait_s=4.0) == (4 / 6, 1 - 2 / 6)


def test_weights_are_loaded_by_each_worker_that_has_a_lease() -> None:
    assert replace(FOUR, load_s=0.5).step_s == 6.5
    assert replace(FOUR, load_s=0.5, lag=4, learn_s=0.1, pools={}).step_s == 2.5
    assert replace(FOUR, load_s=0.5, lag=4, learn_s=0.1, pools={}, workers=8).worker_s == (4 + 4 * 0.5) / 8


def test_a_worker_holds_so_many_leases() -> None:
    """One worker with a lease in hand and one out for 10 s: two leases in 11 s, whatever the pool."""
    slow = Pipeline(4, 1, 1, 1.0, 0.0, {"judge": Pool(8, 10.0)}, 0.1, ahead=1)
    assert slow.step_s == 22.0
    assert slow.doubled(AHEAD).step_s == 11.0
    assert replace(slow, ahead=None).step_s == (4 + 10 + 0.1) / 2


def test_what_is_doubled_is_of_use() -> None:
    assert FOUR.doubled(ROLLOUT).workers == 4
    assert replace(FOUR, workers=4).doubled(ROLLOUT) == replace(FOUR, workers=4, generate_s=0.5)
    assert FOUR.doubled("reward/clip").pools == {"clip": Pool(4, 1.5)}
    assert replace(FOUR, pools={"clip": Pool(4, 1.5)}).doubled("reward/clip").pools == {"clip": Pool(4, 0.75)}
    assert FOUR.doubled(LEARNER).learner_s == 1.0
    assert FOUR.doubled(WEIGHTS) == FOUR
    assert FOUR.gain(FOUR.doubled(LEARNER)) == pytest.approx(1 / 6)


RECORD = {
    "leases": 4, "max_policy_lag": 1, "workers/rollout": 2, "workers/reward/clip": 2, "leases_ahead": 2,
    "seconds/generate": 4.0, "seconds/weights": 1.0, "seconds/reward": 9.0, "seconds/reward/clip": 6.0,
    "seconds/wait": 1.0, "seconds/learn": 1.5, "seconds/publish": 0.5, "seconds/look": 0.2, "seconds/log": 0.1,
}  # fmt: skip


def test_it_is_read_from_a_record() -> None:
    found = Pipeline.of(RECORD)
    assert found == Pipeline(4, 1, 2, 1.0, 0.5, {"clip": Pool(2, 1.5)}, 2.0, pytest.approx(0.3), 2)


@pytest.mark.parametrize("missing", ["leases", "workers/rollout", "workers/reward/clip", "seconds/wait"])
def test_a_record_that_does_not_say_who_there_was_gives_none(missing: str) -> None:
    assert Pipeline.of({key: value for key, value in RECORD.items() if key != missing}) is None
    assert Pipeline.of({**RECORD, "workers/rollout": 0}) is None


def random_line(draw: random.Random, *, look: bool = True) -> Line:
    """Any shape of a run; seconds from 0.05 to 3."""

    def seconds() -> float:
        return math.exp(draw.uniform(math.log(0.05), math.log(3)))

    leases = draw.choice([2, 4, 5, 8, 12])
    pools = {f"r{n}": (draw.choice([1, 1, 2, 4, 8]), seconds()) for n in range(draw.choice([0, 1, 2]))}
    return Line(
        leases, draw.choice([0, 0, 1, 1, 2, 4]), draw.choice([1, 2, 3, 4, 8, 16]), seconds(), seconds() * leases / 2,
        pools, load=draw.choice([0, 0, 0.3]) * seconds(), publish=0.05, look=draw.choice([0, 0, 5 * look]) * seconds(),
        spread=draw.choice([0, 0.1]),
    )  # fmt: skip


def pipeline_of(line: Line) -> Pipeline:
    pools = {name: Pool(*pool) for name, pool in line.pools.items()}
    return Pipeline(line.leases, line.lag, line.workers, line.generate, line.load, pools, line.learn + line.publish,
                    line.look / line.look_every, line.ahead)  # fmt: skip


def test_it_agrees_with_events_in_time() -> None:
    """Where queues build up by chance (pools are asked in turn, not where one is free) a step takes longer."""
    draw = random.Random(0)
    lines = [replace(random_line(draw, look=False), spread=0.0) for _ in range(200)]
    over = sorted(Simulation(line).step_s / pipeline_of(line).step_s for line in lines)
    assert over[0] > 0.95
    assert over[100] < 1.005
    assert over[180] < 1.06
