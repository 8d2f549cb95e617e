"""What tells whether a policy-gradient step is healthy: ratio, KL, effective sample size. All on detached tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio_diagnostics(logprobs: Tensor, behavior_logprobs: Tensor, loss_mask: Tensor) -> dict[str, float]:
    """How far the learner's policy is from the one that sampled.

    At lag 0 every ratio is 1 to float error.

    Args:
        logprobs: float32 [N, T], learner's.
        behavior_logprobs: float32 [N, T], actor's, same temperature.
        loss_mask: float32 [N, T].

    Returns:
        ratio_max_error: max over tokens of |π/μ − 1|. (Our own.)
        approx_kl: mean over tokens of (π/μ − 1) − log(π/μ), estimator k3 of KL(μ ‖ π) (Schulman 2020, "Approximating
            KL Divergence"), in nats.
        ess: effective sample size of the captions, (Σw)²/(N·Σw²) with w the product of ratios, in 0..1 (Kish 1965).
    """
    with torch.no_grad():
        mask = loss_mask > 0
        gap = torch.where(mask, logprobs.detach() - behavior_logprobs, torch.zeros_like(behavior_logprobs)).double()
        ratio = gap.exp()
        tokens = mask.sum().clamp(min=1)
        sequence = gap.sum(dim=1)
        weights = (sequence - sequence.max()).exp()  # the share does not depend on the scale
        ess = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        return {
            "ratio_max_error": float((ratio - 1).abs().max()),
            "approx_kl": float((((ratio - 1) - gap) * mask).sum() / tokens),
            "ess": float(ess),
        }
