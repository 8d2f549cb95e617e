"""What the actors of a training stage want of the cluster, and the GPUs that each gets. Plain: no Ray in here.

Whether it all fits: `fitting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycap.cluster.fitting import Nodes, Want, fits, total
from raycap.errors import RecipeError
from raycap.recipe import Recipe
from raycap.recipe.sections import THROUGH_CLIP

LEARNER, ROLLOUT = "learner", "rollout"


def wants_of(stage: str, recipe: Recipe, gpus: Callable[[str], float]) -> list[Want]:
    """What a stage that trains wants at one time; its learner's ranks come first.

    Args:
        gpus: of one process, by role.
    """
    cluster = recipe.cluster
    wants = [Want(LEARNER, cluster.learner_workers, cluster.learner_cpus, gpus(LEARNER))]
    if stage != "scst":
        return wants
    wants.append(Want(ROLLOUT, cluster.rollout_workers, cluster.rollout_cpus, gpus(ROLLOUT)))
    return wants + [Want(name, r.workers, r.num_cpus, gpus(name)) for name, r in recipe.rewards.items()]


def as_they_start(wants: Sequence[Want]) -> list[Want]:
    """In the order in which they are given room: the learner, rewards (the larger first), and rollouts, which are made
    with the handles of the reward actors."""
    place = {LEARNER: 0, ROLLOUT: 2}
    return sorted(wants, key=lambda want: (place.get(want.role, 1), *(-amount for amount in want.size)))


def gpus_of(role: str, recipe: Recipe, nodes: Nodes, *, alone: bool = False) -> float:
    """GPUs of one process of a role: what the recipe says, else a share that is equal for all who want one.

    The largest share of 1/k for which all find their place; where the cluster is collocated, that of one GPU. Of
    several ranks of a learner each has a GPU for itself, whatever the others get.

    Args:
        alone: nothing else runs beside it (the learner in MLE).

    Raises:
        RecipeError: there is none, or the others take all that there is.
    """
    users = gpu_users(recipe)
    if role == LEARNER:
        _check_ranks(recipe, nodes)
    given, count = users[role]
    if given is not None:
        return given
    beside = {role: (None, count)} if alone else users
    taken = [gpus for gpus, number in beside.values() if gpus is not None for _ in range(number)]
    takers = sum(number for gpus, number in beside.values() if gpus is None)
    there = [{"GPU": node.get("GPU", 0.0)} for node in nodes]
    if recipe.cluster.collocated and not alone:
        there = [{"GPU": 1.0}] if any(node["GPU"] >= 1 for node in there) else []
    share = equal_share(there, taken, takers)
    if not share:
        raise _without_a_share(role, users, nodes)
    return share


def gpu_users(recipe: Recipe) -> dict[str, tuple[float | None, int]]:
    """GPUs of each process of SCST as the recipe says (None: a share), and their number, by role.

    NCCL refuses two ranks on one GPU ("Duplicate GPU detected"), so several ranks have no share but whole ones.
    """
    cluster = recipe.cluster
    several = cluster.learner_workers > 1 and cluster.learner_gpus is None
    users: dict[str, tuple[float | None, int]] = {
        LEARNER: (1.0 if several else cluster.learner_gpus, cluster.learner_workers),
        ROLLOUT: (cluster.rollout_gpus, cluster.rollout_workers),
    }
    for name, reward in recipe.rewards.items():
        through_clip = name in THROUGH_CLIP and not reward.source
        users[name] = (reward.num_gpus if reward.num_gpus is not None or through_clip else 0.0, reward.workers)
    return users


def _check_ranks(recipe: Recipe, nodes: Nodes) -> None:
    """A GPU for each rank, where the recipe leaves it to us; nodes that are still to come may have them."""
    cluster, there = recipe.cluster, int(sum(int(node.get("GPU", 0.0)) for node in nodes))
    if cluster.learner_gpus is None and 1 < cluster.learner_workers > there and not cluster.autoscaling:
        raise RecipeError(f"each rank needs a GPU of its own (NCCL takes no two on one), and the cluster has {there}",
                          key="cluster.learner_workers", value=cluster.learner_workers,
                          remedy="lower it, or cluster.learner_gpus=0 for the CPU; where nodes are still to come, "
                          "cluster.autoscaling=true")  # fmt: skip


def key_of(role: str) -> str:
    """The recipe's key for the GPUs of one process of a role."""
    return {LEARNER: "cluster.learner_gpus", ROLLOUT: "cluster.rollout_gpus"}.get(role, f"rewards.{role}.num_gpus")


def _without_a_share(role: str, users: dict[str, tuple[float | None, int]], nodes: Nodes) -> RecipeError:
    key, there = key_of(role), total(nodes, "GPU")
    if not there:
        return RecipeError("the cluster has no GPU yet", key=key, value=None,
                           remedy=f"where nodes with GPUs are still to come, say how many each process gets: {key}=1; "
                           f"{key}=0 for the CPU, device=cpu for all")  # fmt: skip
    others = ", ".join(f"{name} {count} x {gpus:g}" for name, (gpus, count) in users.items() if gpus)
    what = f"of the cluster's {there:g} GPUs nothing is left for an equal share"
    return RecipeError(f"{what}, beside {others}" if others else what, key=key, value=None,
                       remedy=f"give others fewer, or this one {key}=0 for the CPU; where nodes with GPUs are still to "
                       f"come, say how many it gets: {key}=1")  # fmt: skip


def equal_share(nodes: Nodes, taken: Sequence[float], takers: int) -> float:
    """The largest of 1, 1/2, 1/3 ... (to the hundredth) that `takers` get beside what is `taken`; 0 when none is."""
    beside = [Want(f"taken-{number}", 1, 0.0, gpus) for number, gpus in enumerate(taken)]
    for parts in range(1, 101):
        share = (100 // parts) / 100
        if fits(nodes, [*beside, Want("taker", takers, 0.0, share)], tries=2000):
            return share
    return 0.0


def idle_workers(recipe: Recipe) -> str:
    """That some rollout workers can never hold a lease, in words; empty where each can."""
    scst, workers = recipe.scst, recipe.cluster.rollout_workers
    leases, steps = -(-scst.batch_size // scst.lease_size), scst.max_policy_lag + 1
    if workers <= leases * steps:
        return ""
    needed = -(-workers // steps)  # of a step
    lower = f"scst.lease_size={scst.batch_size // needed} or " if needed <= scst.batch_size else ""
    return (f"{workers - leases * steps} of cluster.rollout_workers = {workers} have nothing to do, ever: a step has "
            f"{leases} leases (scst.batch_size = {scst.batch_size}, scst.lease_size = {scst.lease_size}), and with "
            f"scst.max_policy_lag = {scst.max_policy_lag} {leases * steps} are out at a time; take {lower}"
            f"cluster.rollout_workers={leases * steps}")  # fmt: skip
