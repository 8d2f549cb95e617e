"""PPO's clipped loss and the KL penalty: worked by hand, their gradients, and NaN outside the mask."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raycap.rl.losses import NORMALIZATIONS, clipped_loss, kl_penalty, kl_sum, policy_gradient_loss

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def logs(*ratios: float) -> Tensor:
    return torch.tensor(ratios).log()


def test_the_ratio_counts_up_to_the_clip_where_the_advantage_wants_more() -> None:
    behavior = torch.zeros(2, 3)
    behavior[MASK == 0] = math.nan
    now = torch.stack([logs(1.5, 0.5, 1.0), logs(1.5, 1.0, 1.0)])
    # advantage 2: min(1.5·2, 1.2·2) + min(0.5·2, 0.8·2); advantage −1: min(−1.5, −1.2)
    expected = -((1.2 * 2 + 0.5 * 2) + (-1.5)) / 2
    got = clipped_loss(now, behavior, MASK, torch.tensor([2.0, -1.0]), clip=0.2)
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_what_was_clipped_teaches_nothing_and_nothing_else_is_lost() -> None:
    behavior = torch.zeros(2, 3)
    now = torch.stack([logs(1.5, 0.5, math.nan), logs(1.5, math.nan, math.nan)]).requires_grad_()
    clipped_loss(now, behavior, MASK, torch.tensor([2.0, -1.0]), clip=0.2).backward()
    # d(ρA)/d log π = ρA, over two captions
    assert now.grad is not None
    torch.testing.assert_close(now.grad, torch.tensor([[0.0, -0.5, 0.0], [0.75, 0.0, 0.0]]))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_at_the_policy_that_sampled_the_gradient_is_reinforce_s(normalize: str) -> None:
    draw = torch.Generator().manual_seed(0)
    now = (-torch.rand(4, 3, generator=draw)).requires_grad_()
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    advantages = torch.randn(4, generator=draw)
    (expected,) = torch.autograd.grad(policy_gradient_loss(now, mask, advantages, normalize=normalize), now)
    (got,) = torch.autograd.grad(clipped_loss(now, now.detach(), mask, advantages, clip=0.2, normalize=normalize), now)
    torch.testing.assert_close(got, expected)


def words(seed: int) -> Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_kl_that_is_told_has_the_kl_s_expectation() -> None:
    """All words of a vocabulary, each weighted by its probability."""
    ours, theirs = (torch.log_softmax(words(n), 0) for n in (1, 2))
    each = [kl_sum(ours[n].view(1, 1), theirs[n].view(1, 1), torch.ones(1, 1)) for n in range(7)]
    assert min(each) >= 0
    exact = (ours.exp() * (ours - theirs)).sum()
    assert float((ours.exp() * torch.tensor(each)).sum()) == pytest.approx(float(exact), rel=1e-6)


def test_the_penalty_s_gradient_is_that_of_the_kl_to_the_reference() -> None:
    logits, theirs = words(1).requires_grad_(), torch.log_softmax(words(2), 0)
    ours = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((ours.exp() * (ours - theirs)).sum(), logits, retain_graph=True)
    each = torch.stack([kl_penalty(ours[n].view(1, 1), theirs[n].view(1, 1), torch.ones(1, 1)) for n in range(7)])
    (got,) = torch.autograd.grad((ours.detach().exp() * each).sum(), logits)
    torch.testing.assert_close(got, exact)


def test_on_another_policy_s_samples_the_gradient_is_the_kl_s_with_importance_weights_alone() -> None:
    """All words, each as often as the policy that sampled says it."""
    logits, theirs, sampled = words(1).requires_grad_(), torch.log_softmax(words(2), 0), torch.log_softmax(words(3), 0)
    ours = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((ours.exp() * (ours - theirs)).sum(), logits, retain_graph=True)

    def gradient(weighted: bool) -> Tensor:
        each = [
            kl_penalty(ours[n].view(1, 1), theirs[n].view(1, 1), torch.ones(1, 1),
                       weights=(ours[n] - sampled[n]).exp().view(1, 1) if weighted else None)
            for n in range(7)
        ]  # fmt: skip
        (got,) = torch.autograd.grad((sampled.exp() * torch.stack(each)).sum(), logits, retain_graph=True)
        return got

    torch.testing.assert_close(gradient(True), exact)
    assert float((gradient(False) - exact).abs().max()) > 0.05


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_stands_outside_the_mask_reaches_nothing(normalize: str) -> None:
    draw = torch.Generator().manual_seed(3)
    now = (-torch.rand(2, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    other = -torch.rand(2, 3, generator=draw, dtype=torch.float64)
    other[MASK == 0] = math.nan
    assert torch.autograd.gradcheck(lambda x: kl_penalty(x, other, MASK.double(), normalize=normalize), now)
    assert float(kl_penalty(now, now.detach(), MASK.double(), normalize=normalize).detach()) == 0
    assert math.isfinite(kl_sum(now, torch.nan_to_num(other, -1.0), MASK.double()))
