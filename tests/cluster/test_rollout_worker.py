"""A rollout actor that cannot start says why, and nobody takes it for dead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.exchange import Exchange
from raycap.cluster.reward_pool import RewardPools
from raycap.cluster.rollout_worker import RolloutActor
from raycap.errors import CheckpointError
from raycap.recipe import SCSTRecipe
from raycap.train.prompts import PromptSchedule
from raycap.types import Lease

pytestmark = pytest.mark.ray


def test_a_checkpoint_that_is_not_there_ends_the_run_with_its_name(ray_session: Any, tmp_path: Path) -> None:
    schedule = PromptSchedule(["a", "b"], batch_size=2, lease_size=2, seed=0)
    exchange = ray_session.remote(Exchange).options(num_cpus=0, max_concurrency=10).remote(
        schedule, total_steps=2, max_policy_lag=0, lease_timeout_s=60.0, quarantine_after=3
    )  # fmt: skip
    folder = str(tmp_path / "mle" / "best")
    worker = RolloutActor("rollout-0", folder, str(tmp_path), SCSTRecipe(), RewardPools({}), max_length=5, seed=0,
                          threads=1, device="cpu")  # fmt: skip
    worker.run(exchange)
    with pytest.raises(ray_session.exceptions.RayTaskError) as refused:
        ray_session.get(exchange.take.remote(0, 0, 1, 5.0))
    error = refused.value.cause
    assert isinstance(error, CheckpointError)
    assert "holds no captioner" in str(error)
    assert error.value == folder
    ray_session.kill(exchange)


def test_what_is_let_go_is_that_attempt_and_no_other(tmp_path: Path) -> None:
    """An errand of the learner's start before ends while the worker holds the lease of the same number again."""
    folder = str(tmp_path / "nowhere")
    worker = RolloutActor("rollout-0", folder, folder, SCSTRecipe(), RewardPools({}), max_length=5, seed=0, threads=1,
                          device="cpu")  # fmt: skip
    before, now = Lease(3, 1, ()), Lease(3, 1, ())
    worker._held[3, 1] = now
    worker._let_go(before)
    assert worker._held == {(3, 1): now}
    worker._let_go(now)
    assert worker._held == {}
