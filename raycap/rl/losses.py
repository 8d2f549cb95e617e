"""Policy-gradient losses on log-probabilities. Tensors in, scalar tensor out; nothing here knows a model.

Every loss divides by a denominator that the caller may give: a step is worked through in slices (and on several
ranks), and the slices' losses must add up to the loss of the whole step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycap.errors import RecipeError

NORMALIZATIONS = ("batch", "sequence", "token")


def denominator_of(normalize: str, loss_mask: Tensor) -> float:
    """The number that a whole step's summed loss is divided by.

    Args:
        normalize: `batch` and `sequence` count captions, `token` counts tokens.
        loss_mask: float [N, T] of all captions of the step that take part.

    Raises:
        RecipeError: unknown `normalize`.
    """
    if normalize == "token":
        return float(loss_mask.sum())
    if normalize in NORMALIZATIONS:
        return float(loss_mask.shape[0])
    raise RecipeError(f"expected one of {', '.join(NORMALIZATIONS)}", key="scst.normalize", value=normalize)


def reduce_tokens(per_token: Tensor, loss_mask: Tensor, *, normalize: str, denominator: float) -> Tensor:
    """Sum a per-token loss over the mask and divide it.

    `batch`: Σ_n Σ_t m ℓ / N, mean over captions of the sum over tokens (HAR eq. 2). `token`: Σ_n Σ_t m ℓ / Σ m, mean
    over all tokens (Yu et al. 2025, "DAPO", section 3.3). `sequence`: Σ_n (Σ_t m ℓ / Σ_t m) / N, mean over captions of
    each caption's mean over its tokens (Shao et al. 2024, eq. 3). What stands outside the mask, NaN included, reaches
    neither value nor gradient.

    Args:
        per_token: float [N, T], ℓ.
        loss_mask: float [N, T], m: 1 up to and including the first EOS.
        normalize: `batch`, `token` or `sequence`.
        denominator: of the whole step, see `denominator_of`.

    Raises:
        RecipeError: unknown `normalize`.
    """
    kept = torch.where(loss_mask > 0, per_token, torch.zeros_like(per_token))
    if normalize == "sequence":
        kept = kept / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    elif normalize not in NORMALIZATIONS:
        raise RecipeError(f"expected one of {', '.join(NORMALIZATIONS)}", key="scst.normalize", value=normalize)
    return kept.sum() / denominator


def policy_gradient_loss(
    logprobs: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    *,
    normalize: str = "batch",
    denominator: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """REINFORCE with a baseline: −mean[A · Σ_t logp_t · mask_t] (SCST, Rennie et al. 2017 eq. 9; HAR eq. 2).

    Args:
        logprobs: float32 [N, T], of the sampled tokens under the policy now, with gradient.
        loss_mask: float32 [N, T].
        advantages: float32 [N] or [B, K] with N = B·K; no gradient flows through it.
        normalize: see `reduce_tokens`.
        denominator: of the whole step; that of these rows when None.
        weights: float32 [N, T] or [N, 1], importance weights of stale samples; no gradient flows through them.

    Raises:
        RecipeError: unknown `normalize`.
    """
    per_token = -advantages.detach().reshape(-1, 1) * logprobs
    if weights is not None:
        per_token = per_token * weights.detach()
    if denominator is None:
        denominator = denominator_of(normalize, loss_mask)
    return reduce_tokens(per_token, loss_mask, normalize=normalize, denominator=denominator)


def importance_weights(
    logprobs: Tensor, behavior_logprobs: Tensor, loss_mask: Tensor, *, level: str = "token", cap: float = 2.0
) -> Tensor:
    """Truncated importance weights min(π/μ, cap) for samples of an older policy (Espeholt et al. 2018, eq. 1's ρ̄).

    Args:
        logprobs: float32 [N, T], learner's policy.
        behavior_logprobs: float32 [N, T], policy that sampled.
        loss_mask: float32 [N, T]; outside of it π/μ counts as 1.
        level: `token` gives [N, T]; `sequence` gives [N, 1], the truncated product over the caption (Ionides 2008).
        cap: the largest weight, ρ̄.

    Raises:
        RecipeError: unknown `level`.
    """
    gap = _gap(logprobs.detach(), behavior_logprobs, loss_mask)
    if level == "sequence":
        gap = gap.sum(dim=1, keepdim=True)
    elif level != "token":
        raise RecipeError("expected token or sequence", key="scst.importance", value=level)
    return gap.exp().clamp(max=cap)


def clipped_loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    *,
    clip: float,
    normalize: str = "batch",
    denominator: float | None = None,
) -> Tensor:
    """PPO's clipped objective, −min(ρA, clip(ρ, 1 − ε, 1 + ε)A), ρ = π/μ token by token (Schulman et al. 2017, eq. 7).

    Args:
        logprobs: float32 [N, T], of the sampled tokens under the policy now, with gradient.
        behavior_logprobs: float32 [N, T], under the policy that sampled, whatever its version: the ratio is the
            importance weight too.
        loss_mask: float32 [N, T].
        advantages: float32 [N] or [B, K] with N = B·K.
        clip: ε.
        normalize, denominator: see `policy_gradient_loss`.

    Raises:
        RecipeError: unknown `normalize`.
    """
    ratio = _gap(logprobs, behavior_logprobs, loss_mask).exp()
    weight = advantages.detach().reshape(-1, 1)
    per_token = -torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight)
    if denominator is None:
        denominator = denominator_of(normalize, loss_mask)
    return reduce_tokens(per_token, loss_mask, normalize=normalize, denominator=denominator)


def kl_penalty(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    loss_mask: Tensor,
    *,
    normalize: str = "batch",
    denominator: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """½ (log π/reference)² of the sampled tokens (Schulman 2020, estimator k2). On samples of π its gradient is that of
    KL(π ‖ reference), token by token; on those of another policy with importance weights. (The gradient of k3, which
    GRPO's loss holds, is that of KL(reference ‖ π).)

    Args:
        logprobs: float32 [N, T], under the policy now, with gradient.
        reference_logprobs: float32 [N, T], under the frozen policy, at the same temperature.
        loss_mask: float32 [N, T].
        normalize, denominator, weights: see `policy_gradient_loss`.
    """
    per_token = 0.5 * _gap(logprobs, reference_logprobs.detach(), loss_mask) ** 2
    if weights is not None:
        per_token = per_token * weights.detach()
    if denominator is None:
        denominator = denominator_of(normalize, loss_mask)
    return reduce_tokens(per_token, loss_mask, normalize=normalize, denominator=denominator)


def kl_sum(logprobs: Tensor, reference_logprobs: Tensor, loss_mask: Tensor) -> float:
    """KL(π ‖ reference) summed over the sampled tokens, estimator r − 1 − log r with r = reference/π (Schulman 2020,
    k3), in nats: to look at, never negative."""
    gap = _gap(reference_logprobs, logprobs.detach(), loss_mask).double()
    return float(((gap.exp() - 1 - gap) * loss_mask).sum())


def _gap(logprobs: Tensor, other: Tensor, loss_mask: Tensor) -> Tensor:
    """log π/μ inside the mask, 0 outside, where a NaN of either reaches nothing."""
    inside = loss_mask > 0
    nothing = torch.zeros_like(logprobs)
    return torch.where(inside, logprobs, nothing) - torch.where(inside, other, nothing)


def cross_entropy(logprobs: Tensor, loss_mask: Tensor, *, denominator: float | None = None) -> Tensor:
    """−Σ logp · mask / number of tokens (HAR eq. 1, divided by the tokens).

    Args:
        logprobs: float32 [N, T], of the reference's tokens.
        loss_mask: float32 [N, T].
        denominator: tokens of the whole step; those of these rows when None.
    """
    if denominator is None:
        denominator = float(loss_mask.sum())
    return reduce_tokens(-logprobs, loss_mask, normalize="token", denominator=denominator)
