"""Does it fit? Judged by a slow oracle that tries every assignment; and the words in which a shortage is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.cluster.resources import (
    Want,
    count_that_fits,
    equal_share,
    fits,
    gpus_of,
    shortage,
    wants_of,
)
from raycap.errors import RecipeError
from raycap.recipe import list_recipes, load_recipe

from .conftest import recipe_of

CLIP = {"clip": {"reward": {"model": "raycap-scenes-reward"}}, "rewards": {"cider": {}, "clip": {}}}


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
    assert fits(nodes, too_many) in (False, None)


def test_nobody_refuses_what_could_not_be_told() -> None:
    """With too few tries the answer is that it is not known, and a run is not refused for that."""
    wants = [Want(f"role-{n}", 3, 0.3 + n / 10, 0) for n in range(5)]
    assert fits([node(2), node(3), node(1.5)], wants, tries=2) is None


@pytest.mark.parametrize(
    ("nodes", "taken", "takers", "share"),
    [
        ([1], [], 4, 0.25),
        ([4], [], 6, 0.5),  # an even 0.66 would leave two of them without a GPU that has so much
        ([1, 1, 1, 1], [], 5, 0.5),
        ([2], [0.7], 2, 0.5),
        ([2], [0.7, 0.7], 2, 0.25),  # 0.3 is left of each: no half of it
        ([8], [], 8, 1.0),
        ([1], [1.0], 1, 0.0),
        ([0], [], 1, 0.0),
        ([1], [], 0, 1.0),
    ],
)
def test_an_equal_share_is_one_that_all_can_have(
    nodes: list[int], taken: list[float], takers: int, share: float
) -> None:
    assert equal_share([{"GPU": count} for count in nodes], taken, takers) == share


def test_one_gpu_by_turns_is_cut_into_equal_parts(tmp_path: Path) -> None:
    """Of however many the cluster has; nobody else has one in MLE."""
    nodes = [node(8, 4)]
    recipe = recipe_of(tmp_path, ["scst"], cluster={"collocated": True, "rollout_workers": 1}, **CLIP)
    roles = ("learner", "rollout", "clip", "cider")
    assert [gpus_of(role, recipe, nodes) for role in roles] == [0.33, 0.33, 0.33, 0.0]
    assert gpus_of("learner", recipe, nodes, alone=True) == 1.0
    apart = recipe_of(tmp_path, ["scst"], cluster={"rollout_workers": 1}, **CLIP)
    assert [gpus_of(role, apart, nodes) for role in roles] == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(RecipeError, match="learner's GPUs"):
        gpus_of("learner", recipe, [node(8)])


def test_a_stage_wants_the_learner_and_scst_the_others_too(tmp_path: Path) -> None:
    cluster = {"learner_workers": 2, "learner_cpus": 1.5, "rollout_workers": 3, "rollout_cpus": 0.5}
    values = {**CLIP, "rewards": {"cider": {"workers": 2}, "clip": {"num_cpus": 1}}}
    recipe = recipe_of(tmp_path, ["scst"], cluster=cluster, **values)
    wants = wants_of("scst", recipe, {"learner": 1.0, "rollout": 0.5, "cider": 0.0, "clip": 0.25}.__getitem__)
    assert wants == [
        Want("learner", 2, 1.5, 1.0),
        Want("rollout", 3, 0.5, 0.5),
        Want("cider", 2, 0.0, 0.0),
        Want("clip", 1, 1.0, 0.25),
    ]
    assert [want.device for want in wants] == ["cuda", "cuda", "cpu", "cuda"]
    assert [want.bundle for want in wants[1:3]] == [{"CPU": 0.5, "GPU": 0.5}, {}]
    assert wants_of("mle", recipe, lambda role: 0.0) == [Want("learner", 2, 1.5, 0.0)]


def test_as_many_begin_as_there_is_room_for() -> None:
    """One GPU is there: the learner's. The others' nodes are still to come."""
    wants = [Want("learner", 1, 1, 1), Want("rollout", 4, 1, 1), Want("cider", 1, 0, 0)]
    assert count_that_fits([node(8, 1)], wants, "rollout") == 0
    assert count_that_fits([node(8, 1), node(2, 2)], wants, "rollout") == 2
    assert count_that_fits([node(8, 8)], wants, "rollout") == 4


@pytest.mark.parametrize("name", [name.removesuffix(".yaml") for name in list_recipes()])
def test_our_recipes_start_on_two_cores(name: str) -> None:
    recipe = load_recipe(name, [], {})
    for stage in ("mle", "scst"):
        assert shortage([node(2)], wants_of(stage, recipe, lambda role: 0.0)) == ""
