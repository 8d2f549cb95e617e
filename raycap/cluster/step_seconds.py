"""Where a step's seconds went, for the log: the learner's own by part, the actors' summed over leases, idle shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycap.recipe import Recipe
from raycap.train.group import Group
from raycap.types import Rollouts

OWN = ("wait", "learn", "publish", "look", "log", "checkpoint")
"""The learner's parts. The last three follow a step's record: the next one has them."""
ACTORS = ("weights", "generate", "reward")


def step_seconds(
    rollouts: Sequence[Rollouts], step: int, lap: tuple[float, Mapping[str, float]], recipe: Recipe, group: Group, *,
    workers: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """From the publication before to this one.

    Args:
        rollouts: this rank's leases.
        step: that they were generated for.
        lap: the learner's seconds as a whole, and by part.
        workers: rollout workers that were heard; the recipe's number when None.
    """
    whole, own = max(lap[0], 1e-9), lap[1]
    names = list(recipe.rewards)
    sums = {part: sum(r.seconds.get(part, 0.0) for r in rollouts) for part in ACTORS}
    # the components' own work; `reward` is the wait for them, queues included
    sums |= {f"reward/{name}": sum(r.scores[name].seconds for r in rollouts if name in r.scores) for name in names}
    sums |= {"lag": sum(step - r.weights_id.policy_version for r in rollouts), "leases": len(rollouts)}
    sums = dict(zip(sums, group.sum_values([float(value) for value in sums.values()]), strict=True))
    lag, leases = sums.pop("lag"), sums.pop("leases")
    crew = workers or recipe.cluster.rollout_workers
    return {
        **{f"seconds/{part}": own.get(part, 0.0) for part in OWN},
        **{f"seconds/{part}": value for part, value in sums.items()},
        "idle/learner": own.get("wait", 0.0) / whole,
        # at lag > 0 actors work ahead: in a step they may have been busy for longer than it took
        "idle/actors": max(0.0, 1.0 - (sums["weights"] + sums["generate"]) / (crew * whole)),
        "policy_lag": lag / max(1.0, leases),
        "leases": int(leases),
        "max_policy_lag": recipe.scst.max_policy_lag,
        "leases_ahead": recipe.cluster.leases_ahead,
        "workers/rollout": crew,
        **{f"workers/reward/{name}": recipe.rewards[name].workers for name in names},
        **({"collocated": True} if recipe.cluster.collocated else {}),
    }
