"""What the actors of a training stage want, the GPUs that each gets, and whether it all fits. Plain: no Ray in here.

A process must fit on one node, and a fraction of a GPU on one GPU: four of 0.6 do not fit on two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from raycap.errors import RecipeError
from raycap.recipe import Recipe
from raycap.recipe.sections import THROUGH_CLIP

Nodes = Sequence[Mapping[str, float]]
"""Each node's resources by Ray's names; CPU and GPU count here."""
LEARNER, ROLLOUT = "learner", "rollout"


@dataclass(frozen=True)
class Want:
    """`count` processes of a role, and the CPUs and GPUs of each. `role`: learner, rollout, or a reward component."""

    role: str
    count: int
    cpus: float
    gpus: float

    def of(self, kind: str) -> float:
        """What each of them wants of CPU or GPU."""
        return self.cpus if kind == "CPU" else self.gpus

    @property
    def device(self) -> str:
        """Where its model runs: on a GPU when it has a share of one."""
        return "cuda" if self.gpus else "cpu"

    @property
    def bundle(self) -> dict[str, float]:
        """One of them as Ray's placement groups take it; empty when it wants nothing."""
        return {kind: amount for kind in ("CPU", "GPU") if (amount := self.of(kind))}


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


def gpus_of(role: str, recipe: Recipe, nodes: Nodes, *, alone: bool = False) -> float:
    """GPUs of one process of a role: what the recipe says, else a share that is equal for all who want one.

    The largest share of 1/k for which all find their place; where the cluster is collocated, that of one GPU.

    Args:
        alone: nothing else runs beside it (the learner in MLE).

    Raises:
        RecipeError: the others take all that there is.
    """
    users = gpu_users(recipe)
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
        what = f"the cluster's {_total(nodes, 'GPU'):g} GPUs are taken by the others"
        raise RecipeError(what, key=f"{role}'s GPUs", value=share,
                          remedy="give fewer to others, or 0 for the CPU; device=cpu for all; where nodes with GPUs "
                          "are still to come, say how many it gets")  # fmt: skip
    return share


def gpu_users(recipe: Recipe) -> dict[str, tuple[float | None, int]]:
    """GPUs of each process of SCST as the recipe says (None: a share), and their number, by role."""
    cluster = recipe.cluster
    users: dict[str, tuple[float | None, int]] = {
        LEARNER: (cluster.learner_gpus, cluster.learner_workers),
        ROLLOUT: (cluster.rollout_gpus, cluster.rollout_workers),
    }
    for name, reward in recipe.rewards.items():
        through_clip = name in THROUGH_CLIP and not reward.source
        users[name] = (reward.num_gpus if reward.num_gpus is not None or through_clip else 0.0, reward.workers)
    return users


def equal_share(nodes: Nodes, taken: Sequence[float], takers: int) -> float:
    """The largest of 1, 1/2, 1/3 ... (to the hundredth) that `takers` get beside what is `taken`; 0 when none is."""
    beside = [Want(f"taken-{number}", 1, 0.0, gpus) for number, gpus in enumerate(taken)]
    for parts in range(1, 101):
        share = (100 // parts) / 100
        if fits(nodes, [*beside, Want("taker", takers, 0.0, share)], tries=2000):
            return share
    return 0.0


def shortage(nodes: Nodes, wants: Sequence[Want]) -> str:
    """What is short, in words; empty when all fits, or when looking through all places would take too long."""
    for kind in ("CPU", "GPU"):
        needed, there = sum(w.count * w.of(kind) for w in wants), _total(nodes, kind)
        if needed > there + _UNIT / 2:
            parts = ", ".join(f"{w.role} {w.count} x {w.of(kind):g}" for w in wants if w.of(kind))
            return f"needs {needed:g} {kind}s, the cluster has {there:g}: {parts}"
    for want in wants:
        if fits(nodes, [replace(want, count=1)]) is False:
            return f"a process must fit on one node: {want.role} wants {_amounts(want.bundle)}, {_described(nodes)}"
    if fits(nodes, wants) is False:
        parts = ", ".join(f"{w.role} {w.count} x ({_amounts(w.bundle)})" for w in wants if w.bundle)
        return ("a process must fit on one node, and a fraction of a GPU on one GPU: there is no place for all of "
                f"{parts}; {_described(nodes)}")  # fmt: skip
    return ""


def count_that_fits(nodes: Nodes, wants: Sequence[Want], role: str) -> int:
    """How many of a role's processes find their place beside all others'; nodes may still come for the rest."""
    most = next(want.count for want in wants if want.role == role)
    for count in range(most, 0, -1):
        if fits(nodes, [replace(w, count=count) if w.role == role else w for w in wants]) is not False:
            return count
    return 0


_UNIT = 1e-4  # Ray's: it counts in ten-thousandths
_WHOLE = round(1 / _UNIT)
_Node = tuple[int, tuple[int, ...]]  # what is left of a node: CPUs, and each GPU, sorted


def fits(nodes: Nodes, wants: Sequence[Want], tries: int = 20_000) -> bool | None:
    """Whether all find a place at one time: every way is tried, the largest processes first, the fullest place first.

    Returns:
        None when `tries` places were not enough to tell.
    """
    each = sorted(((_units(w.gpus), _units(w.cpus)) for w in wants for _ in range(w.count)), reverse=True)
    each = [size for size in each if any(size)]
    start = tuple(sorted((_units(n.get("CPU", 0.0)), (_WHOLE,) * int(n.get("GPU", 0.0))) for n in nodes))
    seen: set[tuple[int, tuple[_Node, ...]]] = set()
    waiting = [(0, start)]  # processes that have their place, and what they left
    while waiting:
        placed, left = waiting.pop()
        if placed == len(each):
            return True
        if (placed, left) in seen:
            continue
        seen.add((placed, left))
        if len(seen) > tries:
            return None
        found = set()
        for number, node in enumerate(left):
            for after in _places(node, *each[placed]):
                found.add((placed + 1, tuple(sorted((*left[:number], after, *left[number + 1 :])))))
        waiting += sorted(found, reverse=True)  # the last is taken first: it leaves the larger nodes as they are
    return False


def _places(node: _Node, gpus: int, cpus: int) -> list[_Node]:
    """What may be left of a node by one process more; nothing when it has no room there."""
    left, of_gpus = node
    if cpus > left:
        return []
    if not gpus:
        return [(left - cpus, of_gpus)]
    if gpus >= _WHOLE:
        free, count = sum(gpu == _WHOLE for gpu in of_gpus), gpus // _WHOLE
        return [(left - cpus, (0,) * count + of_gpus[: len(of_gpus) - count])] if count <= free else []
    shared = []
    for number, gpu in enumerate(of_gpus):
        if gpu >= gpus and gpu not in of_gpus[:number]:
            shared.append((*of_gpus[:number], gpu - gpus, *of_gpus[number + 1 :]))
    return [(left - cpus, tuple(sorted(found))) for found in shared]


def _units(amount: float) -> int:
    return round(amount / _UNIT)


def _total(nodes: Nodes, kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)


def _amounts(bundle: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}s" for kind, amount in bundle.items())


def _described(nodes: Nodes) -> str:
    """The nodes in words, equal ones together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        text = f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs"
        kinds[text] = kinds.get(text, 0) + 1
    return "the nodes have " + "; ".join(f"{count} x {text}" for text, count in kinds.items())
