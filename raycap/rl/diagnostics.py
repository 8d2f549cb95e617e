"""What tells whether a policy-gradient step is healthy: ratio, KL, effective sample size. All on detached tensors.

Captions come lease by lease and rank by rank: `ratio_sums` of each are put together by `ratio_diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def ratio_sums(logprobs: Tensor, behavior_logprobs: Tensor, loss_mask: Tensor) -> dict[str, float]:
    """Of some captions, what `ratio_diagnostics` adds up.

    Args:
        logprobs: float32 [N, T], learner's.
        behavior_logprobs: float32 [N, T], actor's, same temperature.
        loss_mask: float32 [N, T].

    Returns:
        max_error: max over tokens of |π/μ − 1|. kl: sum over tokens of (π/μ − 1) − log(π/μ). tokens, captions: how
        many. log_scale: the largest log w, w the product of a caption's ratios. weights, squares: Σ w and Σ w² over
        captions, w relative to it.
    """
    with torch.no_grad():
        mask = loss_mask > 0
        gap = torch.where(mask, logprobs.detach() - behavior_logprobs, torch.zeros_like(behavior_logprobs)).double()
        ratio = gap.exp()
        sequence = gap.sum(dim=1)
        weights = (sequence - sequence.max()).exp()
        return {
            "max_error": float((ratio - 1).abs().max()),
            "kl": float((((ratio - 1) - gap) * mask).sum()),
            "tokens": float(mask.sum()),
            "captions": float(len(weights)),
            "log_scale": float(sequence.max()),
            "weights": float(weights.sum()),
            "squares": float((weights**2).sum()),
        }


def ratio_diagnostics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How far the learner's policy is from the ones that sampled. At lag 0 every ratio is 1 to float error.

    Args:
        parts: `ratio_sums` of all captions, in whatever pieces.

    Returns:
        ratio_max_error: max over tokens of |π/μ − 1|. (Our own.)
        approx_kl: mean over tokens of (π/μ − 1) − log(π/μ), estimator k3 of KL(μ ‖ π) (Schulman 2020, "Approximating
            KL Divergence"), in nats.
        ess: effective sample size of the captions, (Σw)²/(N·Σw²) with w the product of ratios, in 0..1 (Kish 1965).
        Nothing where there are no parts.
    """
    if not parts:
        return {}
    top = max(part["log_scale"] for part in parts)  # the share does not depend on the scale
    weights = sum(part["weights"] * math.exp(part["log_scale"] - top) for part in parts)
    squares = sum(part["squares"] * math.exp(2 * (part["log_scale"] - top)) for part in parts)
    return {
        "ratio_max_error": max(part["max_error"] for part in parts),
        "approx_kl": sum(part["kl"] for part in parts) / max(1.0, sum(part["tokens"] for part in parts)),
        "ess": weights**2 / (sum(part["captions"] for part in parts) * squares),
    }
