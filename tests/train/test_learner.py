"""The learner's update: the exact gradient by enumeration, however the step is cut; ratio 1 at lag 0; its log."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.errors import WorkFailed
from raycap.models.prefix import PrefixCaptioner
from raycap.models.weights import load_snapshot
from raycap.recipe import RewardRecipe, ScheduleRecipe, SCSTRecipe
from raycap.rewards.contract import score_generation
from raycap.rewards.mix import Mix
from raycap.rl.advantages import combine
from raycap.train.group import Alone
from raycap.train.learner import Learner
from raycap.train.prompts import PromptSchedule
from raycap.train.scst import generate_lease
from raycap.train.step_figures import digest, prompts_digest
from raycap.types import CaptionBatch, ComponentScores, Generation, Lease, Prompt, Rollouts, WeightsId
from tests.conftest import NumberTokenizer, TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]
EOS, LIMIT = 1, 3


def recipe_of(**given: Any) -> SCSTRecipe:
    return SCSTRecipe(**{"batch_size": 12, "lease_size": 4, "num_samples": 4, "lr": 1e-3, "grad_clip": 1e9, **given})


def every_caption(vocabulary: int, limit: int) -> list[tuple[int, ...]]:
    """All that can be generated: ended by the EOS, or cut by the limit."""
    return [
        ids
        for length in range(1, limit + 1)
        for ids in itertools.product(range(vocabulary), repeat=length)
        if EOS not in ids[:-1] and (ids[-1] == EOS or length == limit)
    ]


def slow_logprobs(captioner: PrefixCaptioner, picture: Tensor, ids: Sequence[int], temperature: float) -> Tensor:
    """One caption through one forward without cache or buckets: [length]."""
    words = captioner.lm.get_input_embeddings()(torch.tensor([ids]))  # type: ignore[operator]
    prefix = captioner.encode(picture[None])
    logits = captioner.lm(inputs_embeds=torch.cat([prefix, words], dim=1), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits[prefix.shape[1] - 1 : -1] / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]


def gradients(captioner: PrefixCaptioner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def enumerated(images: Sequence[str], captions: Sequence[tuple[int, ...]], behavior: Tensor, rewards: Any) -> Rollouts:
    """A lease whose samples are all captions there are; greedy rewards of 0."""
    rows, count = len(images) * len(captions), len(captions)
    tokens = np.full((rows, LIMIT), 7, np.int64)  # nonsense behind the end
    lengths = np.array([len(ids) for ids in captions] * len(images))
    for row in range(rows):
        tokens[row, : lengths[row]] = captions[row % count]
    tokens[tokens == 7] = 0
    generation = Generation(
        tokens=tokens, lengths=lengths, behavior_logprobs=behavior.numpy(), finished=np.ones(rows, bool),
        captions=("",) * rows, greedy_captions=("",) * len(images), greedy_finished=np.ones(len(images), bool),
        num_samples=count,
    )  # fmt: skip
    scores = ComponentScores(np.asarray(rewards, np.float32).reshape(len(images), count), np.zeros(len(images), "f4"))
    lease = Lease(0, 0, tuple(Prompt(image, n) for n, image in enumerate(images)))
    return Rollouts(lease, WeightsId(0, 0), generation, {"r": scores})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_update_s_gradient_is_that_of_the_expected_reward(
    make_captioner: MakeCaptioner, tiny: TinyData, temperature: float
) -> None:
    """All 40 captions of a vocabulary of four, each weighted by its probability: exactly −∇ E[reward]."""
    captioner = make_captioner(tokenizer=NumberTokenizer(4), seed=2)
    images, captions = list(tiny.captions)[:3], every_caption(4, LIMIT)
    assert len(captions) == 1 + 3 + 9 * 4
    draw = np.random.default_rng(0)
    rewards = draw.uniform(-1, 3, (len(images), len(captions)))
    pictures = torch.from_numpy(tiny.grid.get(images))
    logprobs = [[slow_logprobs(captioner, picture, ids, temperature) for ids in captions] for picture in pictures]
    chances = torch.stack([torch.stack([row.sum() for row in rows]) for rows in logprobs]).exp()
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    captioner.zero_grad()
    (-(chances * torch.from_numpy(rewards)).sum(dim=1).mean()).backward()
    exact = gradients(captioner)

    behavior = torch.nn.utils.rnn.pad_sequence([row.detach() for rows in logprobs for row in rows], batch_first=True)
    advantages = len(captions) * chances.detach().double().numpy() * rewards
    learner = Learner(captioner, tiny.grid, recipe_of(temperature=temperature, num_samples=len(captions)), {"r": 1.0})
    values = learner.update([enumerated(images, captions, behavior, advantages)])
    assert_close(gradients(captioner), exact, atol=2e-6)
    assert max(float(value.abs().max()) for value in exact.values()) > 1e-2
    assert values["ratio_max_error"] < 1e-4
    by_hand = -sum(float(advantages[b, k] * logprobs[b][k].detach().sum()) for b in range(3) for k in range(40)) / 120
    assert values["pg_loss"] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("normalize", ["batch", "sequence", "token"])
@pytest.mark.parametrize(("lag", "importance"), [(0, "token"), (1, "token"), (1, "sequence"), (1, "none")])
def test_the_update_s_gradient_is_the_recipe_s_formula(
    make_captioner: MakeCaptioner, tiny: TinyData, normalize: str, lag: int, importance: str
) -> None:
    """Stale samples: π/μ cut at its cap for lag > 0 only, per token or per caption; the normalisation's divisor."""
    captioner, cap = make_captioner(tokenizer=NumberTokenizer(4), seed=2), 1.3
    images, captions = list(tiny.captions)[:2], every_caption(4, LIMIT)[:12]
    draw = np.random.default_rng(1)
    rewards = draw.uniform(-1, 1, (2, len(captions)))
    logprobs = [slow_logprobs(captioner, p, ids, 1.0)
                for p in torch.from_numpy(tiny.grid.get(images)) for ids in captions]  # fmt: skip
    stale = [row.detach() + 0.5 * torch.from_numpy(draw.standard_normal(len(row))).float() for row in logprobs]
    total, tokens = torch.zeros(()), sum(map(len, logprobs))
    for row, old, advantage in zip(logprobs, stale, rewards.reshape(-1), strict=True):
        ratio = (row.detach() - old).exp()
        if lag == 0 or importance == "none":
            weight = torch.ones(len(row))
        else:
            weight = (ratio if importance == "token" else ratio.prod().expand(len(row))).clamp(max=cap)
        part = -float(advantage) * (weight * row).sum()
        total = total + part / (len(row) if normalize == "sequence" else 1)
    captioner.zero_grad()
    (total / (tokens if normalize == "token" else len(logprobs))).backward()
    expected = gradients(captioner)
    recipe = recipe_of(num_samples=12, normalize=normalize, max_policy_lag=lag, importance=importance,
                       importance_cap=cap)  # fmt: skip
    behavior = torch.nn.utils.rnn.pad_sequence(stale, batch_first=True)
    Learner(captioner, tiny.grid, recipe, {"r": 1.0}).update([enumerated(images, captions, behavior, rewards)])
    assert_close(gradients(captioner), expected, atol=2e-6)


class Length:
    """A reward that differs between captions: their words' numbers added up."""

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [sum(map(int, caption.split())) / 20 for caption in batch.captions]


class Picky:
    """Does not apply to every third image."""

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [None if int(image[-2:]) % 3 == 0 else float(len(caption))
                for image, caption in zip(batch.image_ids, batch.captions, strict=True)]  # fmt: skip


class Silent:
    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [None] * len(batch)


def roll_out(
    captioner: PrefixCaptioner, features: FeatureStore, recipe: SCSTRecipe, components: Mapping[str, Any], *,
    lease_size: int = 4, step: int = 0,
) -> list[Rollouts]:  # fmt: skip
    ids = [f"img_{n:03d}" for n in range(24)]
    schedule = PromptSchedule(ids, batch_size=recipe.batch_size, lease_size=lease_size, seed=0)
    made = []
    for lease in schedule.leases(step):
        generation = generate_lease(captioner, features, lease, recipe, max_length=8, seed=1)
        scores = {name: score_generation(name, c, lease.image_ids, generation) for name, c in components.items()}
        made.append(Rollouts(lease, WeightsId(0, step), generation, scores))
    return made


@pytest.mark.parametrize("normalize", ["batch", "sequence", "token"])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(
    make_captioner: MakeCaptioner, tiny: TinyData, normalize: str
) -> None:
    """Leases of 4, 8 (8 + 4) and 12 images of a step of 12, some images without any reward; one image at a time too."""
    found, losses = {}, {}
    for size, rows in ((4, 1), (8, 9), (12, 10**6)):
        recipe = recipe_of(normalize=normalize, baseline="leave_one_out", micro_batch=rows)
        learner = Learner(make_captioner(seed=3), tiny.grid, recipe, {"picky": 1.0})
        rollouts = roll_out(learner.captioner, tiny.grid, recipe, {"picky": Picky()}, lease_size=size)
        values = learner.update(rollouts)
        found[size], losses[size] = gradients(learner.captioner), values["pg_loss"]
        captions = [caption for rollout in rollouts for caption in rollout.generation.captions]
        assert len(rollouts) == -(-12 // size)
        assert captions == found.setdefault("captions", captions), "equal samples, or the comparison means nothing"
        assert values["images_without_reward"] > 0
    scale = max(float(value.abs().max()) for value in found[12].values())
    assert scale > 1e-3
    for size in (4, 8):
        assert_close(found[size], found[12], atol=1e-6 * max(1.0, scale))
        assert losses[size] == pytest.approx(losses[12], abs=1e-5 * max(1.0, abs(losses[12])))


def test_at_lag_0_the_ratio_is_one_to_float_error(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """Feature, word and the LM's own dropout are set, and off: in generation as in learning. Windows are the same."""
    for temperature in (1.0, 0.8):
        recipe = recipe_of(temperature=temperature, crop=1, flip=True)
        captioner = make_captioner(feature_dropout=0.5, word_dropout=0.5, seed=3).train()
        learner = Learner(captioner, tiny.grid, recipe, {"length": 1.0}, seed=1)
        for step in range(3):
            rollouts = roll_out(captioner, tiny.grid, recipe, {"length": Length()}, step=step)
            values = learner.update(rollouts)
            assert values["ratio_max_error"] < 1e-4
            assert abs(values["approx_kl"]) < 1e-6
            assert values["ess"] > 1 - 1e-4
        stale = learner.update(rollouts)
        assert stale["ratio_max_error"] > 1e-3, "a step later the samples are stale"
        assert stale["ess"] < 1 - 1e-6
        fresh = roll_out(captioner, tiny.grid, recipe, {"length": Length()}, step=4)
        other = Learner(captioner, tiny.grid, recipe, {"length": 1.0}, seed=2)
        assert other.update(fresh)["ratio_max_error"] > 1e-3, "another seed sees other views"


def test_scoring_at_another_temperature_shows_in_the_ratio(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    rollouts = roll_out(make_captioner(seed=3), tiny.grid, recipe_of(temperature=0.7), {"length": Length()})
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe_of(), {"length": 1.0})
    assert learner.update(rollouts)["ratio_max_error"] > 0.05


def test_one_step_of_adam_by_hand_and_the_clipped_norm(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """Adam's first step is lr · g/(|g| + 1e-8), the learning rate that of step 0: half-way up a warm-up of one."""
    recipe = recipe_of(lr=0.02, warmup_steps=1, steps=10)
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe, {"length": 1.0})
    before = {name: p.detach().clone() for name, p in learner.captioner.named_parameters()}
    values = learner.update(roll_out(learner.captioner, tiny.grid, recipe, {"length": Length()}))
    assert values["lr"] == pytest.approx(0.01)
    found = gradients(learner.captioner)
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in found.values()))
    assert values["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, p in learner.captioner.named_parameters():
        expected = before[name] - 0.01 * found[name] / (found[name].abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-5)
    assert (learner.step, learner.weights_id) == (1, WeightsId(0, 1))

    clipped = Learner(make_captioner(seed=3), tiny.grid, recipe_of(grad_clip=norm / 3), {"length": 1.0})
    again = clipped.update(roll_out(clipped.captioner, tiny.grid, recipe, {"length": Length()}))
    assert again["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, value in gradients(clipped.captioner).items():
        torch.testing.assert_close(3 * value, found[name], rtol=1e-3, atol=1e-6)


def test_what_is_logged_of_the_rewards(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    recipe = recipe_of(baseline="leave_one_out")
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe, {"length": 1.0, "picky": 0.1})
    rollouts = roll_out(learner.captioner, tiny.grid, recipe, {"length": Length(), "picky": Picky()})
    values = learner.update(rollouts)
    sampled = np.concatenate([r.scores["length"].rewards.ravel() for r in rollouts])
    greedy = np.concatenate([r.scores["length"].greedy_rewards for r in rollouts])
    assert values["reward/length/sampled"] == pytest.approx(sampled.mean())
    assert values["reward/length/spread"] == pytest.approx(sampled.std())
    assert values["reward/length/greedy"] == pytest.approx(greedy.mean())
    applies = sum(int(p.image_id[-2:]) % 3 != 0 for r in rollouts for p in r.lease.prompts)
    assert (values["reward/length/images"], values["reward/picky/images"]) == (12, applies)
    assert 0 < applies < 12
    whole = {
        name: ComponentScores(
            np.concatenate([r.scores[name].rewards for r in rollouts]),
            np.concatenate([r.scores[name].greedy_rewards for r in rollouts]),
            0.0,
        )
        for name in ("length", "picky")
    }
    shares = combine(whole, {"length": 1.0, "picky": 0.1}, baseline="leave_one_out").shares
    assert sum(shares.values()) == pytest.approx(1)
    assert {name: values[f"reward/{name}/share"] for name in shares} == pytest.approx(shares)
    assert values["images_without_reward"] == 0
    lengths = np.concatenate([r.generation.lengths for r in rollouts])
    assert values["length"] == pytest.approx(lengths.mean())
    assert 0 < values["finished_share"] < 1


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ({"kind": "linear", "to": 0.25}, 1 - 0.75 / 200, 0.25),
        ({"kind": "step", "at": {200: 0.5}}, 1.0, 0.5),
        ({"kind": "linear", "to": 3.0, "start": 199}, 1.0, 3.0),
    ],
)
def test_an_update_has_the_weight_of_its_log_line(
    make_captioner: MakeCaptioner, tiny: TinyData, schedule: dict[str, Any], first: float, last: float
) -> None:
    """Of 200 updates the last is line 200: a linear schedule has arrived, `at: {200: ...}` has switched."""
    mix = Mix({"length": RewardRecipe(weight=1.0, schedule=ScheduleRecipe(**schedule))}, total_steps=200)
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe_of(steps=200), mix)
    rollouts = roll_out(learner.captioner, tiny.grid, learner.recipe, {"length": Length()})
    seen = {}
    for before in (0, 198, 199):
        learner.step = before
        values = learner.update(rollouts)
        seen[learner.step] = values["reward/length/weight"]
    assert (seen[1], seen[200]) == pytest.approx((first, last))
    assert seen[199] != pytest.approx(last)


def test_the_digest_hangs_on_every_caption_and_reward(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    recipe = recipe_of()
    rollouts = roll_out(make_captioner(seed=3), tiny.grid, recipe, {"length": Length()})
    again = roll_out(make_captioner(seed=3), tiny.grid, recipe, {"length": Length()})
    assert list(map(digest, rollouts)) == list(map(digest, again))
    last, found = rollouts[-1], {digest(rollouts[-1]), digest(rollouts[0])}
    tokens, rewards = last.generation.tokens.copy(), last.scores["length"].rewards.copy()
    tokens[-1, 0] += 1
    rewards[-1, -1] = np.nextafter(rewards[-1, -1], np.float32(9))
    greedy = (*last.generation.greedy_captions[:-1], "another")
    for changed in (
        replace(last, generation=replace(last.generation, tokens=tokens)),
        replace(last, generation=replace(last.generation, greedy_captions=greedy)),
        replace(last, scores={"length": replace(last.scores["length"], rewards=rewards)}),
    ):
        found.add(digest(changed))
    assert len(found) == 5


def test_images_without_reward_leave_the_loss_and_are_counted(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """As if they had not been in the step: the divisor counts the others."""
    recipe = recipe_of(baseline="leave_one_out", batch_size=12, lease_size=12)
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe, {"picky": 1.0})
    (rollout,) = roll_out(learner.captioner, tiny.grid, recipe, {"picky": Picky()}, lease_size=12)
    values = learner.update([rollout])
    kept = [n for n, p in enumerate(rollout.lease.prompts) if int(p.image_id[-2:]) % 3]
    assert values["images_without_reward"] == 12 - len(kept)
    rows = [4 * n + k for n in kept for k in range(4)]
    g = rollout.generation
    only = Rollouts(
        Lease(0, 0, tuple(rollout.lease.prompts[n] for n in kept)), rollout.weights_id,
        Generation(g.tokens[rows], g.lengths[rows], g.behavior_logprobs[rows], g.finished[rows],
                   tuple(g.captions[n] for n in rows), tuple(g.greedy_captions[n] for n in kept),
                   g.greedy_finished[kept], 4),
        {"picky": ComponentScores(rollout.scores["picky"].rewards[kept], rollout.scores["picky"].greedy_rewards[kept])},
    )  # fmt: skip
    other = Learner(make_captioner(seed=3), tiny.grid, recipe, {"picky": 1.0})
    other.update([only])
    assert_close(gradients(learner.captioner), gradients(other.captioner), atol=1e-6)


def test_a_rank_whose_leases_were_all_set_aside_learns_with_the_others(
    make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any
) -> None:
    recipe = recipe_of()
    alone, *together = (make_captioner(seed=3) for _ in range(3))
    rollouts = roll_out(alone, tiny.grid, recipe, {"length": Length()})
    expected = Learner(alone, tiny.grid, recipe, {"length": 1.0}).update(rollouts)
    first, second = on_ranks(
        2,
        lambda group: Learner(together[group.rank], tiny.grid, recipe, {"length": 1.0}, group).update(
            [] if group.rank else rollouts
        ),
    )
    assert_close(gradients(together[1]), gradients(alone), atol=1e-6)
    assert first["reward/length/sampled"] == second["reward/length/sampled"] == expected["reward/length/sampled"]
    assert Learner(alone, tiny.grid, recipe, {"length": 1.0}).update([])["pg_loss"] == 0


def test_a_step_without_any_reward_changes_nothing(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe_of(), {"silent": 1.0})
    before = {name: p.detach().clone() for name, p in learner.captioner.named_parameters()}
    rollouts = roll_out(learner.captioner, tiny.grid, learner.recipe, {"silent": Silent()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = learner.update(rollouts)
    assert (values["pg_loss"], values["grad_norm"], values["images_without_reward"]) == (0, 0, 12)
    assert learner.step == 1
    assert all(torch.equal(p, before[name]) for name, p in learner.captioner.named_parameters())
    assert not any(isinstance(value, float) and math.isnan(value) for value in values.values()), values
    assert not {"reward/silent/sampled", "reward/silent/greedy"} & set(values), "0 would look like a reward"
    assert values["reward/silent/images"] == 0


def test_a_step_without_any_reward_is_no_step_of_the_optimizer_on_any_number_of_ranks(
    make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any
) -> None:
    """Its momentum would go on by itself, and on several ranks alone: there gradients that nobody has are zeros."""
    recipe, captioners = recipe_of(), [make_captioner(seed=3) for _ in range(3)]
    rollouts = roll_out(captioners[0], tiny.grid, recipe, {"length": Length()})

    def learn(captioner: Any, group: Any) -> Learner:
        learner = Learner(captioner, tiny.grid, recipe, {"length": 1.0}, group)
        learner.update(rollouts[group.rank :: group.size])
        before = [p.detach().clone() for p in captioner.parameters()]
        for rollout in rollouts:
            rollout.scores["length"].rewards[:] = math.nan
        learner.update(rollouts[group.rank :: group.size])
        assert all(torch.equal(p, was) for p, was in zip(captioner.parameters(), before, strict=True))
        return learner

    learners = [learn(captioners[0], Alone())]
    rollouts = roll_out(captioners[1], tiny.grid, recipe, {"length": Length()})
    learners += on_ranks(2, lambda group: learn(captioners[1 + group.rank], group))
    for learner in learners:
        assert {int(state["step"]) for state in learner.optimizer.state.values()} == {1}


def test_what_is_told_of_a_step_does_not_hang_on_the_number_of_ranks(
    make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any
) -> None:
    recipe, captioners = recipe_of(max_policy_lag=1), [make_captioner(seed=3) for _ in range(4)]
    rollouts = roll_out(make_captioner(seed=4), tiny.grid, recipe, {"length": Length()})  # of another policy
    alone = Learner(captioners[0], tiny.grid, recipe, {"length": 1.0}).update(rollouts)
    assert alone["ess"] < 0.9
    told = on_ranks(
        3,
        lambda group: Learner(captioners[1 + group.rank], tiny.grid, recipe, {"length": 1.0}, group).update(
            rollouts[:1] if group.rank == 0 else [] if group.rank == 1 else rollouts[1:]
        ),
    )
    for values in told:
        assert values.keys() == alone.keys()
        assert (values["prompts"], values["rollouts"]) == (alone["prompts"], alone["rollouts"])
        assert values["prompts"] == prompts_digest(rollout.lease for rollout in rollouts)
        for name in ("ratio_max_error", "approx_kl", "ess"):
            assert values[name] == pytest.approx(alone[name], rel=1e-5), name


def test_the_reference_shares_what_is_frozen(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """A frozen LM of billions of parameters is there once."""
    captioner = make_captioner(seed=3, lm_tuning="frozen", mapping="mlp")
    learner = Learner(captioner, tiny.grid, recipe_of(kl_weight=0.1), {"length": 1.0})
    assert learner.reference is not None
    frozen = {id(p) for p in captioner.parameters() if not p.requires_grad}
    kept = {id(p) for p in learner.reference.captioner.parameters()}
    assert frozen
    assert frozen < kept
    assert not kept & {id(p) for p in learner.descent.parameters}
    assert {id(p) for p in learner.reference.own} == kept - frozen
    assert not any(p.requires_grad for p in learner.reference.captioner.parameters())
    assert all(p.requires_grad for p in learner.descent.parameters)


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(
    make_captioner: MakeCaptioner, tiny: TinyData
) -> None:
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe_of(ema=0.9), {"length": 1.0})
    rollouts = roll_out(learner.captioner, tiny.grid, learner.recipe, {"length": Length()})
    rollouts[1].scores["length"].rewards[0, 0] = np.float32(3e38)
    rollouts[1].scores["length"].rewards[0, 1] = np.float32(-3e38)
    before = {name: p.detach().clone() for name, p in learner.captioner.named_parameters()}
    with pytest.raises(WorkFailed, match="step 0 is not finite") as failed, np.errstate(over="ignore"):
        learner.update(rollouts)
    assert failed.value.key == "grad_norm"
    assert failed.value.remedy
    assert learner.step == learner.average.count == 0
    assert all(torch.equal(p, before[name]) for name, p in learner.captioner.named_parameters())
    assert learner.optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_learn_together_what_one_learns(
    make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any, ranks: int
) -> None:
    """Leases dealt out to the ranks, one of which may have none whose images count."""
    recipe = recipe_of(normalize="token", baseline="leave_one_out")
    alone, *together = (make_captioner(seed=3) for _ in range(1 + ranks))
    rollouts = roll_out(alone, tiny.grid, recipe, {"picky": Picky()})
    rollouts[1].scores["picky"].rewards[:] = np.nan
    expected = Learner(alone, tiny.grid, recipe, {"picky": 1.0}).update(rollouts)
    answers = on_ranks(
        ranks,
        lambda group: Learner(together[group.rank], tiny.grid, recipe, {"picky": 1.0}, group).update(
            rollouts[group.rank :: ranks]
        ),
    )
    for captioner, values in zip(together, answers, strict=True):
        assert_close(gradients(captioner), gradients(alone), atol=1e-5)
        assert values["pg_loss"] == pytest.approx(expected["pg_loss"], abs=1e-5)
        figures = {k: v for k, v in expected.items() if k.startswith("reward/") or k in ("length", "finished_share")}
        assert {k: values[k] for k in figures} == pytest.approx(figures, rel=1e-9), (
            "every rank knows all ranks' figures"
        )
        assert values["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        for name, value in captioner.state_dict().items():
            assert torch.equal(value, together[0].state_dict()[name]), f"the ranks' {name} drifted apart"


def test_what_is_published_is_the_policy_now(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    learner = Learner(make_captioner(seed=3), tiny.grid, recipe_of(), {"length": 1.0})
    learner.incarnation = 4
    learner.update(roll_out(learner.captioner, tiny.grid, learner.recipe, {"length": Length()}))
    published = learner.publish()
    assert published.weights_id == WeightsId(4, 1)
    worker = make_captioner(seed=8)
    load_snapshot(worker, published)
    made = [roll_out(c, tiny.grid, learner.recipe, {"length": Length()}, step=1) for c in (worker, learner.captioner)]
    assert [r.generation.captions for r in made[0]] == [r.generation.captions for r in made[1]]
    assert learner.update(made[0])["ratio_max_error"] < 1e-4
