"""What a step makes small beyond REINFORCE: PPO's passes, the KL to the MLE policy, entropy, labelled images."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from raycap.rl.losses import cross_entropy
from raycap.train import objective
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.objective import minibatches
from raycap.train.schedules import scst_factor
from raycap.train.views import training_views
from tests.conftest import TinyData
from tests.train.test_learner import Length, assert_close, gradients, recipe_of, roll_out

MakeCaptioner = Callable[..., PrefixCaptioner]


def learner_of(captioner: PrefixCaptioner, tiny: TinyData, recipe: SCSTRecipe, **given: Any) -> Learner:
    return Learner(captioner, tiny.grid, recipe, {"length": 1.0}, seed=1, **given)


def step_of(
    captioner: PrefixCaptioner, tiny: TinyData, recipe: SCSTRecipe, **given: Any
) -> tuple[Learner, dict[str, Any]]:
    """A learner after one step on captions of its own."""
    rollouts = roll_out(captioner, tiny.grid, recipe, {"length": Length()})
    learner = learner_of(captioner, tiny, recipe, **given)
    return learner, learner.update(rollouts)


def numbered(tiny: TinyData, captioner: PrefixCaptioner) -> LabelledSet:
    """Captions in the words of a captioner that knows numbers."""
    draws = np.random.default_rng(4)
    captions = {image: [" ".join(map(str, draws.integers(2, 9, draws.integers(1, 6))))] for image in tiny.captions}
    return LabelledSet(captions, captioner.tokenizer, 8)


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_image_comes_once_in_each_pass(epochs: int) -> None:
    recipe = recipe_of(objective="ppo", ppo_epochs=epochs, minibatches=2)
    places = [np.array([0, 1, 2, 3]), np.array([], np.int64), np.array([8, 9, 11])]
    parts = list(minibatches(places, recipe, seed=0, step=3))
    assert len(parts) == 2 * epochs
    for start in range(0, len(parts), 2):
        for lease, mine in enumerate(places):
            seen = [int(n) for part in parts[start : start + 2] for n in part[lease]]
            assert sorted(seen) == list(range(len(mine)))
    again = list(minibatches(places, recipe, seed=0, step=3))
    other = list(minibatches(places, recipe, seed=0, step=4))
    assert _plain(parts) == _plain(again) != _plain(other)


def _plain(parts: list[list[Any]]) -> list[list[list[int]]]:
    return [[[int(n) for n in lease] for lease in part] for part in parts]


def test_one_pass_of_ppo_at_lag_0_is_reinforce(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    ours, theirs = make_captioner(seed=3), make_captioner(seed=3)
    _, plain = step_of(theirs, tiny, recipe_of())
    _, values = step_of(ours, tiny, recipe_of(objective="ppo"))
    assert_close(gradients(ours), gradients(theirs), atol=1e-5)
    assert values["clipped"] == 0
    assert "clipped" not in plain


def test_ppo_descends_once_a_minibatch_and_its_captions_end_up_clipped(
    make_captioner: MakeCaptioner, tiny: TinyData
) -> None:
    recipe = recipe_of(objective="ppo", ppo_epochs=4, minibatches=3, lr=1e-2, ppo_clip=0.05)
    learner, values = step_of(make_captioner(seed=3), tiny, recipe)
    assert int(learner.optimizer.state[learner.descent.parameters[0]]["step"]) == 12
    assert learner.step == 1
    assert 0 < values["clipped"] < 1
    assert values["ratio_max_error"] < 1e-4, "of the first pass's first part, before anything was learned"


def test_minibatches_may_be_as_small_as_an_image(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    learner, values = step_of(make_captioner(seed=3), tiny, recipe_of(objective="ppo", minibatches=12))
    assert int(learner.optimizer.state[learner.descent.parameters[0]]["step"]) == 12
    assert values["ess"] > 0.99


def test_two_ranks_learn_what_one_learns(make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any) -> None:
    given = {"kl_weight": 0.1, "mle_weight": 0.5, "mle_batch_size": 3, "entropy_weight": 0.1}
    recipe = recipe_of(objective="ppo", ppo_epochs=2, minibatches=2, **given)
    alone, *captioners = (make_captioner(seed=3) for _ in range(3))
    rollouts = roll_out(alone, tiny.grid, recipe, {"length": Length()})
    labelled = numbered(tiny, alone)
    expected = learner_of(alone, tiny, recipe, labelled=labelled).update(rollouts)

    def learn(group: Any) -> dict[str, Any]:
        learner = Learner(captioners[group.rank], tiny.grid, recipe, {"length": 1.0}, group, seed=1, labelled=labelled)
        return learner.update(rollouts[group.rank :: 2])

    for values in on_ranks(2, learn):
        for name in ("pg_loss", "kl", "mle_loss", "entropy", "clipped", "grad_norm"):
            assert values[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    apart = []
    for one, other, single in zip(*(c.parameters() for c in (*captioners, alone)), strict=True):
        assert torch.equal(one, other)
        apart.append((one - single).detach().abs().reshape(-1))
    # Adam turns the rounding of a gradient that is 0 (of the keys' bias) into steps of the learning rate
    assert float(torch.cat(apart).median()) < 1e-6
    assert float(torch.cat(apart).mean()) < 1e-4


def test_the_kl_is_to_the_policy_that_it_began_with(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """Without rewards it alone pulls: nothing at the beginning, back towards it from elsewhere."""
    recipe = recipe_of(kl_weight=1.0, lr=1e-2)
    captioner = make_captioner(seed=3)
    begun = copy.deepcopy(captioner)
    rollouts = roll_out(captioner, tiny.grid, recipe, {"length": Length()})
    for rollout in rollouts:
        rollout.scores["length"].rewards[:] = 0
        rollout.scores["length"].greedy_rewards[:] = 0
    learner = learner_of(captioner, tiny, recipe)
    values = learner.update(rollouts)
    assert values["kl"] == pytest.approx(0, abs=1e-9)
    assert values["grad_norm"] < 1e-4
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    kls = [learner.update(rollouts)["kl"] for _ in range(15)]
    assert kls[0] > 1e-3
    assert kls[-1] < 0.5 * kls[0]
    assert learner.reference is not None
    for kept, first in zip(learner.reference.captioner.parameters(), begun.parameters(), strict=True):
        assert torch.equal(kept, first)


@pytest.mark.parametrize("given", [{"max_policy_lag": 1}, {"objective": "ppo", "minibatches": 2}])
def test_the_kl_of_stale_captions_counts_them_as_often_as_the_policy_says_them(
    make_captioner: MakeCaptioner, tiny: TinyData, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[Any] = []
    counted = objective.kl_penalty

    def spied(*args: Any, **options: Any) -> torch.Tensor:
        weights.append(options["weights"])
        return counted(*args, **options)

    monkeypatch.setattr(objective, "kl_penalty", spied)
    captioner = make_captioner(seed=3)
    fresh = recipe_of(kl_weight=0.1)
    rollouts = roll_out(captioner, tiny.grid, fresh, {"length": Length()})
    learner_of(captioner, tiny, fresh).update(rollouts)
    assert set(weights) == {None}, "at lag 0 they are the policy's own"
    weights.clear()
    stale = recipe_of(kl_weight=0.1, importance_cap=1.5, **given)
    learner_of(captioner, tiny, stale).update(rollouts)  # one step on
    assert weights
    assert all(0 < float(each.min()) < 0.999 and float(each.max()) <= 1.5 for each in weights)


def test_the_entropy_that_is_rewarded_is_that_of_the_words(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    recipe = recipe_of(entropy_weight=0.3)
    ours, theirs = make_captioner(seed=3), make_captioner(seed=3)
    rollouts = roll_out(ours, tiny.grid, recipe, {"length": Length()})
    for rollout in rollouts:
        rollout.scores["length"].rewards[:] = 0
        rollout.scores["length"].greedy_rewards[:] = 0
    values = learner_of(ours, tiny, recipe).update(rollouts)
    total, tokens = torch.zeros(()), 0
    for rollout in rollouts:
        generation = rollout.generation
        seen = torch.from_numpy(tiny.grid.get(rollout.lease.image_ids))
        for row, length in enumerate(generation.lengths):
            words = torch.from_numpy(generation.tokens[row, :length])
            total, tokens = total + _entropies(theirs, seen[row // 4], words).sum(), tokens + int(length)
    (-0.3 * total / 48).backward()
    assert values["entropy"] == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    assert_close(gradients(ours), gradients(theirs), atol=1e-6)


def _entropies(captioner: PrefixCaptioner, picture: Tensor, words: Tensor) -> Tensor:
    """Of one caption through one forward: [length]."""
    embedded = captioner.lm.get_input_embeddings()(words[None])  # type: ignore[operator]
    prefix = captioner.encode(picture[None])
    logits = captioner.lm(inputs_embeds=torch.cat([prefix, embedded], dim=1), use_cache=False).logits[0]
    return torch.distributions.Categorical(logits=logits[prefix.shape[1] - 1 : -1]).entropy()


def test_labelled_images_are_learned_beside_the_samples(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    plain, both, alone = (make_captioner(seed=3) for _ in range(3))
    labelled = numbered(tiny, plain)
    recipe = recipe_of(mle_weight=0.7, mle_batch_size=5)
    step_of(plain, tiny, recipe_of())
    _, values = step_of(both, tiny, recipe, labelled=labelled)
    batch = labelled.batch(0, batch_size=5, captions_per_image=1, seed=1)
    seen = training_views(alone, tiny.grid, batch.image_ids, recipe, seed=1, step=0, positions=range(5))
    alone.eval()
    mask = torch.from_numpy(batch.loss_mask)
    loss = cross_entropy(alone.score(alone.encode(seen), torch.from_numpy(batch.tokens), mask), mask)
    (0.7 * loss).backward()
    expected = {name: value + gradients(alone)[name] for name, value in gradients(plain).items()}
    assert_close(gradients(both), expected, atol=1e-6)
    assert values["mle_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_labelled_images_must_be_there(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    with pytest.raises(RecipeError, match=r"scst\.mle_weight"):
        learner_of(make_captioner(), tiny, recipe_of(mle_weight=1.0))


def test_the_cosine_falls_towards_the_floor() -> None:
    recipe = recipe_of(lr_schedule="cosine", lr_floor=0.1, steps=10)
    rates = [scst_factor(recipe, step) for step in range(11)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert Counter(rates).most_common(1)[0][1] == 1
    assert np.isfinite(rates).all()
