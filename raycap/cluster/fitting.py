"""Whether processes find their places on the nodes of a cluster: at all, and as Ray starts them. Plain: no Ray in here.

A process must fit on one node, and a fraction of a GPU on one GPU: four of 0.6 do not fit on two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Nodes = Sequence[Mapping[str, float]]
"""Each node's resources by Ray's names; CPU and GPU count here."""


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
    def size(self) -> tuple[float, float]:
        """By which they are compared: GPUs, then CPUs."""
        return self.gpus, self.cpus

    @property
    def device(self) -> str:
        """Where its model runs: on a GPU when it has a share of one."""
        return "cuda" if self.gpus else "cpu"

    @property
    def bundle(self) -> dict[str, float]:
        """One of them as Ray's placement groups take it; empty when it wants nothing."""
        return {kind: amount for kind in ("CPU", "GPU") if (amount := self.of(kind))}


def shortage(nodes: Nodes, wants: Sequence[Want]) -> str:
    """What is short, in words; empty when all fits, or when looking through all places would take too long."""
    for kind in ("CPU", "GPU"):
        needed, there = sum(w.count * w.of(kind) for w in wants), total(nodes, kind)
        if needed > there + _UNIT / 2:
            parts = ", ".join(f"{w.role} {w.count} x {w.of(kind):g}" for w in wants if w.of(kind))
            return f"needs {needed:g} {kind}s, the cluster has {there:g}: {parts}"
    for want in wants:
        if fits(nodes, [replace(want, count=1)]) is False:
            return f"a process must fit on one node: {want.role} wants {amounts(want.bundle)}, {_described(nodes)}"
    if fits(nodes, wants) is False:
        parts = ", ".join(f"{w.role} {w.count} x ({amounts(w.bundle)})" for w in wants if w.bundle)
        return ("a process must fit on one node, and a fraction of a GPU on one GPU: there is no place for all of "
                f"{parts}; {_described(nodes)}")  # fmt: skip
    return ""


def count_that_fits(nodes: Nodes, wants: Sequence[Want], role: str) -> int:
    """How many of a role's processes find their place beside all others'; nodes may still come for the rest."""
    most = next(want.count for want in wants if want.role == role)
    fewest = 0
    while fewest < most:  # what holds many holds fewer
        count = (fewest + most + 1) // 2
        if fits(nodes, [replace(w, count=count) if w.role == role else w for w in wants]) is not False:
            fewest = count
        else:
            most = count - 1
    return fewest


_UNIT = 1e-4  # Ray's: it counts in ten-thousandths
_WHOLE = round(1 / _UNIT)
_Node = tuple[int, tuple[int, ...]]  # what is left of a node: CPUs, and each GPU, sorted
_Left = tuple[tuple[_Node, int], ...]  # what is left of all: nodes that are alike counted together
_Size = tuple[int, int]  # of a process: GPUs, CPUs


def fits(nodes: Nodes, wants: Sequence[Want], tries: int = 20_000) -> bool | None:
    """Whether all find a place at one time: every way is tried, the largest processes first, the fullest place first.

    Nodes that are alike are one place, so that hundreds of them take no longer to look through than a few.

    Returns:
        None when `tries` places were not enough to tell.
    """
    each, start = sorted(_sizes(wants), reverse=True), _left(nodes)
    if _plainly_short(start, each):
        return False
    seen: set[tuple[int, _Left]] = set()
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
        found = [(wasted, node, after) for node, _ in left for wasted, after in _places(node, each[placed])]
        # the last is taken first: it wastes the least
        waiting += [(placed + 1, _moved(left, node, after)) for _, node, after in sorted(found, reverse=True)]
    return False


def starts(nodes: Nodes, wants: Sequence[Want], tries: int = 5_000) -> Literal["all", "some", "never"] | None:
    """Whether all find a place when they start one after another, in the order of `wants`, each where Ray puts it.

    Ray does not look ahead: it puts a fraction of a GPU on the GPU of a node that it fits best (ResourceInstanceSet's
    TryAllocate in its scheduler), and who wants no GPU mostly on a node that has none. Which of several nodes it takes
    hangs on much; here it may be any.

    Returns:
        "all" when they do, whichever nodes it takes; "some": with luck; "never": always one is left over; None when
        `tries` were not enough to tell.
    """
    each, start = _sizes(wants), _left(nodes)
    mostly = _outcomes(start, each, tries, anywhere=False)
    if mostly != {False}:
        return None if mostly is None else "some" if False in mostly else "all"
    ever = _outcomes(start, each, tries, anywhere=True)
    return None if ever is None else "some" if True in ever else "never"


def _outcomes(start: _Left, each: Sequence[_Size], tries: int, *, anywhere: bool) -> set[bool] | None:
    """Of all ways in which they may start, whether every process finds its place."""
    reached, found, tried = {start}, set[bool](), 0
    for size in each:
        after: set[_Left] = set()
        for left in reached:
            then = {_moved(left, node, rest) for node, rest in _where_ray_puts(left, size, anywhere)}
            found |= set() if then else {False}
            after |= then
        tried += len(after)
        if tried > tries:
            return None
        reached = after
    return found | ({True} if reached else set())


def _where_ray_puts(left: _Left, size: _Size, anywhere: bool) -> list[tuple[_Node, _Node]]:
    """Each node that takes a process, and what is left of it then."""
    best = [(node, min(places)[1]) for node, _ in left if (places := _places(node, size))]
    without = [(node, after) for node, after in best if not node[1]]
    return without if without and not size[0] and not anywhere else best


def _places(node: _Node, size: _Size) -> list[tuple[int, _Node]]:
    """What may be left of a node by one process more, and how much of a place is wasted by it: less is better. Nothing
    when it has no room there."""
    (gpus, cpus), (left, of_gpus) = size, node
    if cpus > left:
        return []
    if not gpus:
        return [(sum(of_gpus), (left - cpus, of_gpus))]
    if gpus >= _WHOLE:
        free, count = sum(gpu == _WHOLE for gpu in of_gpus), gpus // _WHOLE
        return [(free - count, (left - cpus, (0,) * count + of_gpus[: len(of_gpus) - count]))] if count <= free else []
    shared = []
    for number, gpu in enumerate(of_gpus):
        if gpu >= gpus and gpu not in of_gpus[:number]:
            after = tuple(sorted((*of_gpus[:number], gpu - gpus, *of_gpus[number + 1 :])))
            shared.append((gpu - gpus, (left - cpus, after)))
    return shared


def _left(nodes: Nodes) -> _Left:
    alike = Counter((_units(n.get("CPU", 0.0)), (_WHOLE,) * int(n.get("GPU", 0.0))) for n in nodes)
    return tuple(sorted(alike.items()))


def _moved(left: _Left, node: _Node, after: _Node) -> _Left:
    """One node of a kind has become one of another."""
    alike = dict(left)
    alike[node] -= 1
    alike[after] = alike.get(after, 0) + 1
    return tuple(sorted((kind, count) for kind, count in alike.items() if count))


def _sizes(wants: Sequence[Want]) -> list[_Size]:
    """Of each process, in order; those that want nothing are left out."""
    each = [(_units(w.gpus), _units(w.cpus)) for w in wants for _ in range(w.count)]
    return [size for size in each if any(size)]


def _plainly_short(left: _Left, each: Sequence[_Size]) -> bool:
    """Whether more is wanted than there is in sum, or more processes want some amount of one GPU (of one node's CPUs)
    than there are places of that amount."""
    one_by_one = [min(gpus, _WHOLE) for gpus, _ in each for _ in range(max(1, gpus // _WHOLE))]
    kinds = (
        (one_by_one, [(gpu, count) for node, count in left for gpu in node[1]]),
        ([cpus for _, cpus in each], [(node[0], count) for node, count in left]),
    )
    for wanted, places in kinds:
        for part in {1, *wanted} - {0}:
            if sum(amount // part for amount in wanted) > sum(place // part * count for place, count in places):
                return True
    return False


def _units(amount: float) -> int:
    return round(amount / _UNIT)


def total(nodes: Nodes, kind: str) -> float:
    """CPUs or GPUs of all nodes together."""
    return sum(node.get(kind, 0.0) for node in nodes)


def amounts(bundle: Mapping[str, float]) -> str:
    """A bundle in words."""
    return " and ".join(f"{amount:g} {kind}s" for kind, amount in bundle.items())


def _described(nodes: Nodes) -> str:
    """The nodes in words, equal ones together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        text = f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs"
        kinds[text] = kinds.get(text, 0) + 1
    return "the nodes have " + "; ".join(f"{count} x {text}" for text, count in kinds.items())
