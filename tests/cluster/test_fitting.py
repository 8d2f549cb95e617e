"""Does it fit? Judged by a slow oracle that tries every assignment; and the words in which a shortage is told."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from raycap.cluster.fitting import Want, count_that_fits, fits, shortage, starts


def node(cpus: float, gpus: int = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def fits_by_trying(nodes: list[dict[str, float]], wants: list[Want]) -> bool:
    """Every assignment of processes to nodes, and of each to GPUs of its node."""
    each = [want for want in wants for _ in range(want.count)]
    places = [
        [
            (number, chosen)
            for number, there in enumerate(nodes)
            for chosen in itertools.combinations(range(int(there.get("GPU", 0))), int(np.ceil(want.gpus)))
        ]
        for want in each
    ]
    return any(_holds(nodes, each, chosen) for chosen in itertools.product(*places))


def _holds(nodes: list[dict[str, float]], each: list[Want], chosen: Any) -> bool:
    cpus = [there.get("CPU", 0.0) for there in nodes]
    gpus = [[1.0] * int(there.get("GPU", 0)) for there in nodes]
    for want, (number, indices) in zip(each, chosen, strict=True):
        cpus[number] -= want.cpus
        for index in indices:
            gpus[number][index] -= min(1.0, want.gpus)
    return min(cpus) > -1e-9 and all(left > -1e-9 for of_node in gpus for left in of_node)


def test_fitting_is_what_trying_everything_says() -> None:
    draws = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(400):
        nodes = [node(int(draws.integers(1, 5)), int(draws.integers(0, 3))) for _ in range(draws.integers(1, 4))]
        wants = [
            Want(f"role-{n}", int(draws.integers(1, 3)), float(draws.choice([0, 0.5, 1, 1.5, 2])),
                 float(draws.choice([0, 0.25, 0.4, 0.6, 1, 2])))
            for n in range(draws.integers(1, 4))
        ]  # fmt: skip
        expected = fits_by_trying(nodes, wants)
        assert fits(nodes, wants) is expected, (nodes, wants)
        assert bool(shortage(nodes, wants)) is not expected, (nodes, wants)
        seen[expected] += 1
    assert min(seen.values()) > 100, "both answers are tried"


@pytest.mark.parametrize(
    ("nodes", "wants", "said"),
    [
        (
            [node(16, 4)],
            [Want("learner", 1, 1, 1), Want("rollout", 4, 1, 1), Want("cider", 1, 0, 0), Want("clip", 1, 1, 1)],
            "needs 6 GPUs, the cluster has 4: learner 1 x 1, rollout 4 x 1, clip 1 x 1",
        ),
        ([node(2)], [Want("learner", 1, 2, 0), Want("rollout", 2, 0.5, 0)],
         "needs 3 CPUs, the cluster has 2: learner 1 x 2, rollout 2 x 0.5"),
        ([node(2), node(2)], [Want("learner", 1, 4, 0)],
         "a process must fit on one node: learner wants 4 CPUs, the nodes have 2 x 2 CPUs and 0 GPUs"),
        ([node(8), node(1, 2)], [Want("learner", 1, 4, 1)],
         "a process must fit on one node: learner wants 4 CPUs and 1 GPUs, the nodes have 1 x 8 CPUs and 0 GPUs; "
         "1 x 1 CPUs and 2 GPUs"),
        ([node(8, 1), node(8, 1)], [Want("learner", 1, 1, 2)],
         "a process must fit on one node: learner wants 1 CPUs and 2 GPUs, the nodes have 2 x 8 CPUs and 1 GPUs"),
        ([node(8, 3)], [Want("rollout", 4, 1, 0.6)],
         "a process must fit on one node, and a fraction of a GPU on one GPU: there is no place for all of rollout "
         "4 x (1 CPUs and 0.6 GPUs); the nodes have 1 x 8 CPUs and 3 GPUs"),
        ([node(8, 2)], [Want("rollout", 4, 1, 0.6)], "needs 2.4 GPUs, the cluster has 2: rollout 4 x 0.6"),
        ([node(8, 2)], [Want("rollout", 4, 1, 0.5)], ""),
        ([node(2)], [Want("rollout", 9, 0, 0)], ""),
        ([node(0), node(1), node(1)], [Want("rollout", 2, 1, 0)], ""),
    ],
)  # fmt: skip
def test_what_is_short_is_told_with_numbers(nodes: list[dict[str, float]], wants: list[Want], said: str) -> None:
    assert shortage(nodes, wants) == said


def starting_by_trying(nodes: list[dict[str, float]], wants: list[Want]) -> str:
    """Every choice of a node for each in turn; on it the GPU that is fullest and still has room. Who wants no GPU keeps
    off nodes with GPUs, unless nobody could start so."""
    each = [want for want in wants for _ in range(want.count)]
    mostly, ever = (set(_ends(nodes, each, anywhere)) for anywhere in (False, True))
    if mostly == {False}:
        return "some" if True in ever else "never"
    return "all" if mostly == {True} else "some"


def _ends(nodes: list[dict[str, float]], each: list[Want], anywhere: bool) -> Iterator[bool]:
    """Of every way, whether the last one has found its place."""
    ways = [([there.get("CPU", 0.0) for there in nodes], [[1.0] * int(there.get("GPU", 0)) for there in nodes])]
    for want in (want for want in each if want.cpus or want.gpus):
        further = []
        for cpus, gpus in ways:
            can = [
                n for n, free in enumerate(gpus) if cpus[n] > want.cpus - 1e-9 and _takes(free, want.gpus) is not None
            ]
            if not want.gpus and not anywhere:
                can = [n for n in can if not gpus[n]] or can
            if not can:
                yield False
            for n in can:
                left = [list(of_node) for of_node in gpus]
                for index in _takes(gpus[n], want.gpus) or []:
                    left[n][index] -= min(1.0, want.gpus)
                further.append(([c - want.cpus * (m == n) for m, c in enumerate(cpus)], left))
        ways = further
    yield from [True] * bool(ways)


def _takes(free: list[float], gpus: float) -> list[int] | None:
    """Indices of a node's GPUs that Ray would give; None when it has none to give."""
    if gpus >= 1:
        whole = [index for index, left in enumerate(free) if left > 1 - 1e-9]
        return whole[: int(gpus)] if len(whole) >= gpus else None
    room = [(left, index) for index, left in enumerate(free) if left > gpus - 1e-9]
    if not gpus:
        return []
    return [min(room)[1]] if room else None


def test_starting_is_what_trying_every_node_says() -> None:
    draws = np.random.default_rng(1)
    seen: Counter[str] = Counter()
    for _ in range(3000):
        nodes = [node(int(draws.integers(2, 5)), int(draws.integers(0, 3))) for _ in range(draws.integers(1, 4))]
        wants = [
            Want(f"role-{n}", int(draws.integers(1, 3)), float(draws.choice([0, 0.5, 1])),
                 float(draws.choice([0, 0.3, 0.4, 0.6, 0.7, 1])))
            for n in range(draws.integers(2, 5))
        ]  # fmt: skip
        expected = starting_by_trying(nodes, wants)
        assert starts(nodes, wants) == expected, (nodes, wants)
        there_is_a_place = fits(nodes, wants)
        assert there_is_a_place or expected == "never", "what starts has a place"
        seen[expected if there_is_a_place else "no place"] += 1
    assert min(seen[answer] for answer in ("all", "some", "never")) > 5, seen


def test_in_which_order_they_start_decides_who_is_left_over() -> None:
    """Both of 0.4 go to one GPU, which they fit best; then one of 0.6 has none. The larger first, and all have."""
    small, large = Want("clip", 2, 0, 0.4), Want("rollout", 2, 0, 0.6)
    assert fits([{"GPU": 2}], [small, large])
    assert starts([{"GPU": 2}], [small, large]) == "never"
    assert starts([{"GPU": 2}], [large, small]) == "all"
    assert starts([{"GPU": 1}, {"GPU": 1}], [small, large]) == "some", "on two nodes, as Ray likes"
    assert starts([{"GPU": 1}, {"GPU": 1}], [Want("clip", 2, 0, 0.5), Want("rollout", 2, 0, 0.5)]) == "all"
    assert starts([node(2, 1), node(1)], [Want("cider", 1, 1, 0), Want("rollout", 1, 2, 1)]) == "all", (
        "who wants no GPU keeps off its node"
    )
    assert starts([node(1.5, 1), node(2.5)] * 2, [Want(f"role-{n}", 3, 0.3, 0.1) for n in range(4)], tries=5) is None


def test_the_best_place_is_not_always_the_first() -> None:
    """Two of 0.6 and two of 0.4 fill two GPUs; where both of 0.4 are on one, the last finds no place."""
    wants = [Want("clip", 2, 0, 0.4), Want("rollout", 2, 0, 0.6)]
    assert fits([{"GPU": 2}], wants) is True
    # CPUs are on one node and the GPU on the other: the GPU's node must be left to who needs it
    assert fits([node(1, 1), node(1)], [Want("rollout", 1, 1, 0), Want("learner", 1, 1, 1)]) is True


def test_a_large_cluster_is_looked_through_in_a_moment() -> None:
    nodes = [node(8, 1)] * 40 + [node(48, 8)] * 4
    wants = [Want("learner", 16, 2, 1), Want("rollout", 80, 1, 0.5), Want("clip", 8, 1, 1), Want("cider", 8, 1, 0)]
    assert fits(nodes, wants) is True
    too_many = [Want("learner", 16, 2, 1), Want("rollout", 61, 1, 0.6)]
    assert fits(nodes, too_many) is False


def test_hundreds_of_nodes_that_are_alike_are_one_place() -> None:
    """Told with a few looks a process, however many nodes there are."""
    nodes = [node(0), *[node(8, 1)] * 500]
    learner = Want("learner", 16, 2, 1)
    one_short = [learner, Want("rollout", 485, 1, 1)]
    assert fits(nodes, one_short, tries=1) is False, "in sum"
    assert fits(nodes, [learner, Want("rollout", 485, 1, 0.6)], tries=1500) is False, "one by one"
    assert fits(nodes, [learner, Want("rollout", 484, 1, 0.6), Want("clip", 484, 1, 0.4)], tries=1500) is True
    assert starts(nodes, [learner, Want("rollout", 484, 1, 0.6)], tries=1500) == "all"
    assert starts(nodes, [learner, Want("rollout", 485, 1, 0.6)], tries=1500) == "never"
    wants = [learner, Want("rollout", 2000, 1, 0.6)]
    assert count_that_fits(nodes, wants, "rollout") == 484
    assert shortage(nodes, one_short) == "needs 501 GPUs, the cluster has 500: learner 16 x 1, rollout 485 x 1"


def test_nobody_refuses_what_could_not_be_told() -> None:
    """With too few tries the answer is that it is not known, and a run is not refused for that."""
    wants = [Want(f"role-{n}", 3, 0.3 + n / 10, 0) for n in range(5)]
    assert fits([node(3), node(3), node(1.5)], wants, tries=2) is None


def test_as_many_begin_as_there_is_room_for() -> None:
    """One GPU is there: the learner's. The others' nodes are still to come."""
    wants = [Want("learner", 1, 1, 1), Want("rollout", 4, 1, 1), Want("cider", 1, 0, 0)]
    assert count_that_fits([node(8, 1)], wants, "rollout") == 0
    assert count_that_fits([node(8, 1), node(2, 2)], wants, "rollout") == 2
    assert count_that_fits([node(8, 8)], wants, "rollout") == 4
