"""Ranks that share the captioner out (FSDP2) learn what ranks do that have all of it. Two real processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.errors import RecipeError, WorkFailed
from raycap.models.prefix import PrefixCaptioner
from raycap.models.recompute import recompute_blocks
from raycap.models.weights import load_snapshot
from raycap.recipe import SCSTRecipe
from raycap.train.group import Alone, DistributedGroup
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.sharding import ShardingGroup
from raycap.train.shards import whole
from raycap.types import Rollouts
from tests.conftest import TinyData
from tests.train.test_learner import Length, Picky, recipe_of, roll_out
from tests.two_ranks import TwoRanks

MakeCaptioner = Callable[..., PrefixCaptioner]
GROUPS = {"none": DistributedGroup, "fsdp": ShardingGroup}
WORDS = {f"img_{n:03d}": (f"{2 + n % 9} {5 + n % 7} 4", "3 2") for n in range(6)}


def dealt(rollouts: Sequence[Rollouts], rank: int, all_to_first: bool) -> list[Rollouts]:
    """Three leases: two and one, or all and none."""
    return [] if all_to_first and rank else list(rollouts if all_to_first else rollouts[rank::2])


def learn(
    how: str, captioner: PrefixCaptioner, features: Path, recipe: SCSTRecipe, steps: Sequence[Sequence[Rollouts]],
    options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Some updates in a rank: what it says of itself, and on rank 0 what is left of them."""
    group = GROUPS[how]()
    if options.get("recompute"):
        recompute_blocks(captioner)
    labelled = LabelledSet(WORDS, captioner.tokenizer, 8) if recipe.mle_weight else None
    (name,) = {name for rollouts in steps for each in rollouts for name in each.scores}
    precision = getattr(torch, options.get("precision", "float32"))
    learner = Learner(captioner, FeatureStore.open(features), recipe, {name: 1.0}, group, labelled=labelled,
                      precision=precision)  # fmt: skip
    values = [learner.update(dealt(each, group.rank, options.get("all_to_first", False))) for each in steps]
    learner.standing.collect(state=True)
    gradients = {name: whole(p.grad) for name, p in captioner.named_parameters() if p.grad is not None}
    told = {
        "values": values,
        "gradients": gradients,
        "kept": sum(p.numel() for p in map(local, learner.descent.parameters)),
    }
    if group.rank:
        return told
    with learner.standing.averaged() as shown:
        told["averaged"] = copied(shown)
    return {**told, "published": learner.publish(), "state": learner.standing.state_dict(),
            "parameters": copied(learner.standing.captioner)}  # fmt: skip


def copied(captioner: PrefixCaptioner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in captioner.named_parameters()}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def assert_near(got: Any, expected: Any, atol: float, where: str = "state") -> None:
    """Through dicts and lists; numbers of any kind."""
    assert type(got) is type(expected), where
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_near(got[key], value, atol, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for number, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_near(one, other, atol, f"{where}.{number}")
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(got, expected, rtol=0, atol=atol, msg=lambda told: f"{where}: {told}")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, abs=atol, rel=1e-4), where
    else:
        assert got == expected, where


def three_steps(captioner: PrefixCaptioner, tiny: TinyData, recipe: SCSTRecipe, reward: Any) -> list[list[Rollouts]]:
    """Captions of the policy that it starts with: they are to be learned from by all."""
    return [roll_out(captioner, tiny.grid, recipe, {"r": reward}, step=step) for step in range(3)]


def of_one_word(rollouts: Sequence[Rollouts]) -> None:
    """Captions cut to their first word, in place: nothing is read."""
    for each in rollouts:
        each.generation.lengths[:] = 1


LM: dict[str, Any] = {"lm": "llama", "seed": 3}
CASES: dict[str, dict[str, Any]] = {
    "uneven leases, one image at a time": {"recipe": {"micro_batch": 4}},
    "all that is added to the loss": {
        "recipe": {"micro_batch": 8, "kl_weight": 0.1, "entropy_weight": 0.01, "mle_weight": 0.2, "mle_batch_size": 1,
                   "ema": 0.9, "normalize": "token", "baseline": "leave_one_out"},
        "reward": Picky,
    },
    "nothing for one rank, several times": {
        "recipe": {"objective": "ppo", "ppo_epochs": 2, "minibatches": 2, "kl_weight": 0.1, "micro_batch": 8},
        "all_to_first": True,
    },
    "one word a caption on one rank, made twice": {"recipe": {}, "recompute": True, "one_word": True},
    "a frozen LM": {"captioner": {"lm_tuning": "frozen", "mapping": "mlp"}, "recipe": {"micro_batch": 4}},
    "adapters": {
        "captioner": {"lm_tuning": "lora", "mapping": "mlp"},
        "recipe": {"micro_batch": 4, "kl_weight": 0.1, "ema": 0.9},
    },
    "rounded products": {"recipe": {"micro_batch": 8}, "precision": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_three_steps_of_scst_are_those_of_ranks_that_have_all(
    make_captioner: MakeCaptioner, tiny: TinyData, two_ranks: TwoRanks, case: str
) -> None:
    options = CASES[case]
    recipe = recipe_of(**{"grad_clip": 2.0, **options["recipe"]})
    captioner = make_captioner(**{**LM, **options.get("captioner", {})})
    steps = three_steps(captioner, tiny, recipe, options.get("reward", Length)())
    if options.get("one_word"):
        for rollouts in steps:
            of_one_word(rollouts[1::2])
    given = (captioner, tiny.grid.folder, recipe, steps, options)
    expected, found = (two_ranks(learn, how, *given) for how in GROUPS)
    scale = max(float(value.abs().max()) for value in expected[0]["gradients"].values())
    assert scale > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours["gradients"], theirs["gradients"], 1e-5 * max(1.0, scale), "gradients")
        assert_near(ours["values"], theirs["values"], 1e-5, "values")
        assert ours["kept"] < 0.6 * theirs["kept"], "a rank keeps its part"
    assert_near(found[0]["gradients"], found[1]["gradients"], 0.0)
    for what in ("parameters", "averaged", "state"):
        assert_near(found[0][what], expected[0][what], 1e-5, what)
    assert expected[0]["values"][0]["grad_norm"] > 0
    moved = [float((p - expected[0]["parameters"][name]).abs().max()) for name, p in copied(captioner).items()]
    assert max(moved) > 1e-3
    follower = copy.deepcopy(captioner)
    load_snapshot(follower, found[0]["published"])
    assert_near(copied(follower), found[0]["parameters"], 0.0)


def test_gradients_of_gpt2_are_those_of_ranks_that_have_all(
    make_captioner: MakeCaptioner, tiny: TinyData, two_ranks: TwoRanks
) -> None:
    """Its output layer is its embedding, and its layers keep their weights the other way round. (The biases of its
    keys have no gradient but rounding, which Adam makes a step of: parameters are not compared.)"""
    captioner, recipe = make_captioner(seed=3), recipe_of(micro_batch=4)
    steps = three_steps(captioner, tiny, recipe, Length())[:1]
    expected, found = (two_ranks(learn, how, captioner, tiny.grid.folder, recipe, steps, {}) for how in GROUPS)
    assert "lm.transformer.wte.weight" in expected[0]["gradients"]
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours["gradients"], theirs["gradients"], 1e-5)


def end(how: str, captioner: PrefixCaptioner, features: Path, recipe: SCSTRecipe, rollouts: list[Rollouts]) -> Any:
    """What an update raised, and whether it changed anything."""
    group = GROUPS[how]()
    learner = Learner(captioner, FeatureStore.open(features), recipe, {"r": 1.0}, group)
    before = [local(p).clone() for p in learner.descent.parameters]
    try:
        with np.errstate(over="ignore"):
            learner.update(rollouts[group.rank :: group.size])
    except WorkFailed as error:
        same = all(torch.equal(local(p), was) for p, was in zip(learner.descent.parameters, before, strict=True))
        return str(error), error.key, same and learner.step == 0
    return None


@pytest.mark.parametrize("where", [0, 1])
def test_a_gradient_of_one_rank_that_is_not_finite_ends_all(
    make_captioner: MakeCaptioner, tiny: TinyData, two_ranks: TwoRanks, where: int
) -> None:
    captioner, recipe = make_captioner(**LM), recipe_of()
    rollouts = roll_out(captioner, tiny.grid, recipe, {"r": Length()})
    rollouts[where].scores["r"].rewards[0, :2] = np.float32(3e38), np.float32(-3e38)
    raised = two_ranks(end, "fsdp", captioner, tiny.grid.folder, recipe, rollouts)
    for why, key, unchanged in raised:
        assert "the gradient of step 0 is not finite" in why
        assert key == "grad_norm"
        assert unchanged


def refused(captioner: PrefixCaptioner) -> tuple[str, Any]:
    with pytest.raises(RecipeError) as raised:
        ShardingGroup().hold(captioner)
    return raised.value.key, raised.value.remedy


def test_an_lm_that_is_gone_through_as_its_captions_ask_is_refused(
    make_captioner: MakeCaptioner, two_ranks: TwoRanks
) -> None:
    captioner = make_captioner(**LM)
    captioner._shares_prefix = False
    assert two_ranks(refused, captioner) == [("cluster.learner_sharding", "set it to none")] * 2


def test_who_has_all_of_it_never_idles(make_captioner: MakeCaptioner) -> None:
    captioner, alone = make_captioner(), Alone()
    assert alone.shown(captioner) is captioner
    assert alone.idle_passes(7) == 0
