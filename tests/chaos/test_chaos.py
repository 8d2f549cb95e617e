"""Whatever is killed, and whenever: the run ends by itself, and what it learned is what an unharmed run learns.

`RAYCAP_CHAOS_KILLS` says how many processes are killed in each run (4; `make chaos`: 100), `RAYCAP_CHAOS_SEED` in which
order and when.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.run import run_recipe
from raycap.cluster.training_stages import scst_schedule
from raycap.errors import WorkFailed
from raycap.train.journal import FolderJournal, read_log
from raycap.train.step_figures import prompts_digest
from tests.chaos.monkey import KILLS, SEED, TAIL, TITLES, Kill, planned, ravaged, steps_for
from tests.cluster.test_equality import assert_equal, one_process

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# As many as there are kills: how it ends when they are exceeded is tested below.
CLUSTER = {"rollout_workers": 2, "max_failures": 1000, "quarantine_after": 1000, "lease_timeout_s": 60}
STEPS = steps_for(KILLS)


def test_at_lag_0_nothing_that_is_killed_changes_what_is_learned(
    ray_session: Any, tiny_run: Any, tmp_path: Path
) -> None:
    run = tiny_run("ravaged", cluster=CLUSTER, scst={"steps": STEPS, "select_every": 10})
    expected = one_process(run, tmp_path / "reference")
    monkey = ravaged(run, planned(list(TITLES), KILLS, SEED))
    assert set(monkey.killed) == set(TITLES)
    assert_equal(run.path("scst", 0), expected, STEPS)


def test_at_lag_2_no_prompt_is_lost_or_comes_twice(ray_session: Any, tiny_run: Any) -> None:
    run = tiny_run("stale", cluster=CLUSTER, scst={"steps": STEPS, "select_every": 10, "max_policy_lag": 2})
    ravaged(run, planned(list(TITLES), KILLS, SEED + 1))
    schedule = scst_schedule(run, 0)
    found = [record for record in read_log(run.path("scst", 0)) if "prompts" in record]
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert [r["prompts"] for r in found] == [prompts_digest(schedule.leases(step)) for step in range(STEPS)]
    assert all(0 <= r["policy_lag"] <= 2 for r in found)
    assert run.results("scst", 0)["set_aside"] == []


def test_either_of_two_ranks_may_be_killed(ray_session: Any, tiny_run: Any) -> None:
    """Two ranks add up in one order only: what they learn is equal bit by bit, too."""
    plan = planned(["learner"], max(1, KILLS // 4), SEED + 2)
    steps = steps_for(len(plan))
    ranks = {"cluster": {**CLUSTER, "learner_workers": 2}, "scst": {"steps": steps, "select_every": 5}}
    whole, run = tiny_run("whole", **ranks), tiny_run("ranks", **ranks)
    run_recipe(whole.recipe)
    ravaged(run, plan)
    assert_equal(run.path("scst", 0), whole.path("scst", 0), steps)


def test_more_kills_than_the_recipe_allows_end_the_run_and_cost_nothing(
    ray_session: Any, tiny_run: Any, tmp_path: Path
) -> None:
    """At the recipe's own limits: a learner that is killed once more than it is started again."""
    steps = 9 + TAIL
    run = tiny_run("limits", scst={"steps": steps})
    allowed = run.recipe.cluster.max_failures
    expected = one_process(run, tmp_path / "reference")
    plan = [Kill("learner", 1 + 4 * n, 0.0, 0.0) for n in range(allowed + 1)]
    told = (
        rf"cluster\.max_failures = {allowed}: the learner failed after {allowed} restarts.*run the same command again"
    )
    with pytest.raises(WorkFailed, match=told):
        ravaged(run, plan)
    assert FolderJournal(run.path("scst", 0)).checkpoints
    run_recipe(run.recipe)
    assert_equal(run.path("scst", 0), expected, steps)
