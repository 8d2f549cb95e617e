"""What each role wants of the cluster: GPUs that are given, shared, or whole for the ranks of a learner."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.cluster.fitting import Want, shortage
from raycap.cluster.resources import as_they_start, equal_share, gpus_of, idle_workers, wants_of
from raycap.errors import RecipeError
from raycap.recipe import list_recipes, load_recipe

from .conftest import recipe_of

CLIP = {"clip": {"reward": {"model": "raycap-scenes-reward"}}, "rewards": {"cider": {}, "clip": {}}}


def node(cpus: float, gpus: int = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


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


@pytest.mark.parametrize("stage", ["scst", "mle"])
def test_several_ranks_have_a_gpu_each(tmp_path: Path, stage: str) -> None:
    """NCCL takes no two on one; the others share what is left, and the run is refused when ranks are left over."""
    recipe = recipe_of(tmp_path, ["scst"], cluster={"learner_workers": 2}, **CLIP)
    alone = stage != "scst"

    def shares(nodes: list[dict[str, float]]) -> list[float]:
        wants = wants_of(stage, recipe, lambda role: gpus_of(role, recipe, nodes, alone=alone))
        assert shortage(nodes, wants) == ""
        return [want.gpus for want in wants]

    said = r"cluster.learner_workers = 2: each rank needs a GPU of its own .* the cluster has 1 \(.*learner_gpus=0"
    with pytest.raises(RecipeError, match=said):
        shares([node(8, 1)])
    if alone:
        assert shares([node(8, 2)]) == shares([node(8, 1)] * 3) == [1.0]
        return
    with pytest.raises(RecipeError, match=r"cluster.rollout_gpus = None: of the cluster's 2 GPUs nothing is left .*, "
                                          r"beside learner 2 x 1 \(.*cluster.rollout_gpus=0"):  # fmt: skip
        shares([node(8, 2)])
    assert shares([node(8, 3)]) == [1.0, 0.33, 0.0, 0.33]
    assert shares([node(8, 1)] * 4) == [1.0, 0.5, 0.0, 0.5]
    assert shares([node(8, 5)]) == [1.0, 1.0, 0.0, 1.0]


def test_ranks_whose_nodes_are_still_to_come_have_a_gpu_each_as_well(tmp_path: Path) -> None:
    grows = {"learner_workers": 2, "autoscaling": True}
    recipe = recipe_of(tmp_path, ["mle"], cluster=grows)
    assert gpus_of("learner", recipe, [node(8)], alone=True) == 1.0
    given = recipe_of(tmp_path, ["mle"], cluster={"learner_workers": 2, "learner_gpus": 2})
    assert gpus_of("learner", given, [node(8, 1)], alone=True) == 2.0, "what is short of it is told by `shortage`"


def test_where_no_gpu_is_there_yet_it_is_said_how_to_go_on(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["scst"], device="cuda", cluster={"autoscaling": True}, **CLIP)
    for role, key in (("learner", "cluster.learner_gpus"), ("rollout", "cluster.rollout_gpus"),
                      ("clip", "rewards.clip.num_gpus")):  # fmt: skip
        with pytest.raises(RecipeError) as refused:
            gpus_of(role, recipe, [node(8)])
        assert str(refused.value).startswith(f"{key} = None: the cluster has no GPU yet (where nodes with GPUs are")
        assert f"{key}=1" in str(refused.value)


def test_the_larger_rewards_start_first_and_the_learner_before_them() -> None:
    wants = [Want("learner", 1, 1, 0.1), Want("rollout", 2, 1, 1), Want("cider", 1, 0, 0), Want("clip", 1, 0, 0.5),
             Want("mine", 1, 2, 0.5)]  # fmt: skip
    assert [want.role for want in as_they_start(wants)] == ["learner", "mine", "clip", "cider", "rollout"]


@pytest.mark.parametrize(
    ("batch", "lease", "lag", "workers", "idle", "remedy"),
    [
        (80, 20, 0, 4, 0, ""),
        (80, 20, 0, 8, 4, "take scst.lease_size=10 or cluster.rollout_workers=4"),
        (80, 20, 1, 8, 0, ""),
        (80, 20, 1, 9, 1, "take scst.lease_size=16 or cluster.rollout_workers=8"),
        (6, 4, 0, 3, 1, "take scst.lease_size=2 or cluster.rollout_workers=2"),
        (4, 1, 0, 9, 5, "take cluster.rollout_workers=4"),
    ],
)
def test_workers_that_can_never_have_a_lease_are_told_of(
    tmp_path: Path, batch: int, lease: int, lag: int, workers: int, idle: int, remedy: str
) -> None:
    scst = {"batch_size": batch, "lease_size": lease, "max_policy_lag": lag}
    said = idle_workers(recipe_of(tmp_path, ["scst"], scst=scst, cluster={"rollout_workers": workers}))
    assert said.startswith(f"{idle} of cluster.rollout_workers = {workers} have nothing to do, ever") == bool(idle)
    assert said.endswith(remedy)
    better = {**scst, "lease_size": batch // -(-workers // (lag + 1)) or 1}
    if remedy.startswith("take scst"):
        assert f"scst.lease_size={better['lease_size']}" in remedy
        assert not idle_workers(recipe_of(tmp_path, ["scst"], scst=better, cluster={"rollout_workers": workers}))


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


@pytest.mark.parametrize("name", [name.removesuffix(".yaml") for name in list_recipes()])
def test_our_recipes_start_on_two_cores(name: str) -> None:
    recipe = load_recipe(name, [], {})
    for stage in ("mle", "scst"):
        assert shortage([node(2)], wants_of(stage, recipe, lambda role: 0.0)) == ""
