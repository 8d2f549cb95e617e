"""Losses against a policy worked by hand, the exact gradient by enumeration, and NaN where nothing counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raycap.errors import RecipeError
from raycap.models.prefix import token_logprobs
from raycap.rl.advantages import combine
from raycap.rl.losses import (
    NORMALIZATIONS,
    cross_entropy,
    denominator_of,
    importance_weights,
    policy_gradient_loss,
    reduce_tokens,
)
from raycap.types import ComponentScores

EOS = 0


class TablePolicy:
    """p(next | last token) from a table of logits [V + 1, V]; row V is the start. EOS = 0, at most `length` tokens."""

    def __init__(self, vocabulary: int, length: int, seed: int) -> None:
        self.vocabulary, self.length = vocabulary, length
        torch.manual_seed(seed)
        self.table = torch.randn(vocabulary + 1, vocabulary, dtype=torch.float64).requires_grad_()
        self.captions = list(self._captions(()))
        self.tokens = torch.zeros(len(self.captions), length, dtype=torch.int64)
        self.mask = torch.zeros(len(self.captions), length, dtype=torch.float64)
        for row, caption in enumerate(self.captions):
            self.tokens[row, : len(caption)] = torch.tensor(caption)
            self.mask[row, : len(caption)] = 1
        self.rewards = torch.tensor(np.random.default_rng(seed).uniform(-1, 3, len(self.captions)))

    def _captions(self, start: tuple[int, ...]) -> itertools.chain[tuple[int, ...]] | list[tuple[int, ...]]:
        """Every caption that can be generated: ended by its EOS, or cut by the limit."""
        if len(start) == self.length or start[-1:] == (EOS,):
            return [start]
        return itertools.chain.from_iterable(self._captions((*start, token)) for token in range(self.vocabulary))

    def logprobs(self, table: Tensor | None = None) -> Tensor:
        """[N, T] of every caption; what lies behind the EOS holds nonsense."""
        before = torch.cat([torch.full((len(self.tokens), 1), self.vocabulary), self.tokens[:, :-1]], dim=1)
        rows = torch.log_softmax((self.table if table is None else table)[before], dim=-1)
        return rows.gather(2, self.tokens[:, :, None])[:, :, 0]

    def probabilities(self, table: Tensor | None = None) -> Tensor:
        return (self.logprobs(table) * self.mask).sum(dim=1).exp()

    def exact_gradient(self) -> Tensor:
        """∇ Σ p(caption) · reward(caption)."""
        (gradient,) = torch.autograd.grad((self.probabilities() * self.rewards).sum(), self.table)
        return gradient


def test_a_two_token_policy_by_hand() -> None:
    """p = (1/4, 3/4). Token 0 with advantage 2, token 1 with −1: −A(e − p) averages to (−7/8, 7/8)."""
    logits = torch.tensor([0.0, math.log(3.0)], requires_grad=True)
    logprobs = torch.log_softmax(logits, dim=0)[:, None]
    loss = policy_gradient_loss(logprobs, torch.ones(2, 1), torch.tensor([2.0, -1.0]))
    assert float(loss) == pytest.approx(-(2 * math.log(0.25) - math.log(0.75)) / 2)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.875, 0.875]))


@pytest.mark.parametrize("offset", [0.0, 1.7])
def test_the_exact_gradient_of_the_expected_reward(offset: float) -> None:
    """Every caption weighted by its probability: minus the gradient of the expected reward, whatever the baseline."""
    policy = TablePolicy(vocabulary=3, length=3, seed=1)
    assert float(policy.probabilities().sum()) == pytest.approx(1.0, abs=1e-12)
    count = len(policy.captions)
    advantages = count * policy.probabilities().detach() * (policy.rewards - offset)
    loss = policy_gradient_loss(policy.logprobs(), policy.mask, advantages, normalize="batch")
    (got,) = torch.autograd.grad(loss, policy.table)
    torch.testing.assert_close(got, -policy.exact_gradient(), rtol=0, atol=1e-12)
    assert float(got.abs().max()) > 0.01


@pytest.mark.parametrize(("level", "exact"), [("sequence", True), ("token", False)])
def test_importance_weights_make_stale_samples_exact_on_the_level_of_captions(level: str, exact: bool) -> None:
    policy = TablePolicy(vocabulary=3, length=3, seed=2)
    old = (policy.table + 0.3 * torch.randn_like(policy.table)).detach()
    behavior, count = policy.logprobs(old), len(policy.captions)
    weights = importance_weights(policy.logprobs(), behavior, policy.mask, level=level, cap=1e9)
    loss = policy_gradient_loss(
        policy.logprobs(), policy.mask, count * policy.probabilities(old) * policy.rewards, weights=weights
    )
    (got,) = torch.autograd.grad(loss, policy.table)
    gap = float((got + policy.exact_gradient()).abs().max())
    assert gap < 1e-12 if exact else gap > 1e-3


@pytest.mark.parametrize(("baseline", "factor"), [("leave_one_out", 1.0), ("mean", 0.5)])
def test_two_samples_in_expectation(baseline: str, factor: float) -> None:
    """Over all pairs of captions: leave-one-out is unbiased, the mean baseline shrinks the gradient by (K−1)/K."""
    policy = TablePolicy(vocabulary=2, length=3, seed=3)
    chance = policy.probabilities().detach()
    total = torch.zeros_like(policy.table)
    for first, second in itertools.product(range(len(policy.captions)), repeat=2):
        pair = [first, second]
        rewards = policy.rewards[pair].numpy().astype(np.float32)[None]
        mixed = combine({"r": ComponentScores(rewards, np.zeros(1, np.float32))}, {"r": 1.0}, baseline=baseline)
        loss = policy_gradient_loss(policy.logprobs()[pair], policy.mask[pair], torch.from_numpy(mixed.values))
        total += chance[first] * chance[second] * torch.autograd.grad(loss, policy.table)[0]
    torch.testing.assert_close(total, -factor * policy.exact_gradient(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_nan_outside_the_mask_reaches_neither_value_nor_gradient(normalize: str) -> None:
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    clean = torch.tensor([[-1.0, -2, -9], [-3, -9, -9]])
    planted = torch.where(mask > 0, clean, torch.nan)
    behavior = torch.where(mask > 0, clean - 0.1, torch.nan)
    values, gradients = [], []
    for logprobs in (clean, planted):
        leaf = logprobs.clone().requires_grad_()
        weights = importance_weights(leaf, behavior, mask)
        loss = policy_gradient_loss(leaf, mask, torch.tensor([1.0, -2.0]), normalize=normalize, weights=weights)
        loss.backward()
        values.append(float(loss))
        gradients.append(leaf.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[1][mask == 0].tolist() == [0, 0, 0]


def test_nan_logits_of_padding_do_not_reach_the_gradient() -> None:
    """Through the softmax as well: 0 · NaN is NaN, so padding must not go through it."""
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    logits = torch.randn(2, 3, 5)
    logits[mask == 0] = torch.nan
    logits.requires_grad_()
    loss = policy_gradient_loss(
        token_logprobs(logits, torch.ones(2, 3, dtype=torch.int64), mask), mask, torch.tensor([1.0, -2.0])
    )
    loss.backward()
    assert math.isfinite(float(loss))
    assert bool(torch.isfinite(logits.grad).all())
    assert bool((logits.grad[mask == 0] == 0).all())
    assert bool((logits.grad[mask > 0] != 0).all())


def test_advantages_and_weights_carry_no_gradient() -> None:
    logprobs, advantages = torch.randn(2, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    behavior = torch.randn(2, 3)
    weights = importance_weights(logprobs, behavior, torch.ones(2, 3))
    assert not weights.requires_grad
    policy_gradient_loss(logprobs, torch.ones(2, 3), advantages, weights=weights).backward()
    assert advantages.grad is None
    torch.testing.assert_close(logprobs.grad, -advantages.detach()[:, None] * weights / 2)


rows = st.lists(st.lists(st.floats(-5, 0, width=32), min_size=4, max_size=4), min_size=1, max_size=6)


@given(rows, st.sampled_from(NORMALIZATIONS), st.data())
def test_normalisations_equal_the_slow_loop_and_slices_add_up(
    values: list[list[float]], normalize: str, data: st.DataObject
) -> None:
    lengths = [data.draw(st.integers(0, 4)) for _ in values]
    advantages = [data.draw(st.floats(-2, 2, width=32)) for _ in values]
    logprobs = torch.tensor(values, dtype=torch.float64)
    mask = torch.tensor([[float(t < length) for t in range(4)] for length in lengths], dtype=torch.float64)
    expected = 0.0
    for row, length, advantage in zip(values, lengths, advantages, strict=True):
        inner = sum(-advantage * value for value in row[:length])
        expected += inner / max(1, length) if normalize == "sequence" else inner
    divisor = sum(lengths) if normalize == "token" else len(values)
    assert denominator_of(normalize, mask) == divisor
    if not divisor:
        return
    expected /= divisor
    whole = policy_gradient_loss(logprobs, mask, torch.tensor(advantages), normalize=normalize)
    assert float(whole) == pytest.approx(expected, abs=1e-9)
    cut = data.draw(st.integers(0, len(values)))
    parts = sum(
        float(policy_gradient_loss(logprobs[part], mask[part], torch.tensor(advantages)[part], normalize=normalize,
                                   denominator=float(divisor)))
        for part in (slice(0, cut), slice(cut, None))
    )  # fmt: skip
    assert parts == pytest.approx(expected, abs=1e-9)


def test_advantages_may_come_as_images_by_samples() -> None:
    logprobs, mask = torch.randn(6, 4), torch.ones(6, 4)
    advantages = torch.randn(2, 3)
    assert float(policy_gradient_loss(logprobs, mask, advantages)) == float(
        policy_gradient_loss(logprobs, mask, advantages.reshape(6))
    )


def test_importance_weights_by_hand() -> None:
    log = math.log
    behavior = torch.tensor([[log(0.5), log(0.1)], [log(0.4), torch.nan]])
    now = torch.tensor([[log(0.25), log(0.3)], [log(0.6), torch.nan]])
    mask = torch.tensor([[1.0, 1], [1, 0]])
    torch.testing.assert_close(importance_weights(now, behavior, mask, cap=2.0), torch.tensor([[0.5, 2.0], [1.5, 1.0]]))
    sequence = importance_weights(now, behavior, mask, level="sequence", cap=1.4)
    torch.testing.assert_close(sequence, torch.tensor([[1.4], [1.4]]))  # 0.5 · 3 = 1.5 and 1.5, cut at 1.4
    with pytest.raises(RecipeError, match=r"scst.importance = 'word'"):
        importance_weights(now, behavior, mask, level="word")


def test_unknown_normalisations_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"scst.normalize = 'length'"):
        denominator_of("length", torch.ones(1, 1))
    with pytest.raises(RecipeError, match=r"scst.normalize = 'length'"):
        reduce_tokens(torch.ones(1, 1), torch.ones(1, 1), normalize="length", denominator=1.0)


def test_cross_entropy_is_a_token_s_mean_and_its_slices_add_up() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, torch.nan], [-4.0, torch.nan, torch.nan]])
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    assert float(cross_entropy(logprobs, mask)) == pytest.approx(7 / 3)
    parts = [float(cross_entropy(logprobs[n : n + 1], mask[n : n + 1], denominator=3.0)) for n in range(2)]
    assert sum(parts) == pytest.approx(7 / 3)
