"""From component rewards to advantages: baselines, the weighted sum, None-handling, scaling.

The advantage of sample k of image b is A = Σ_c w_c · (r_c − baseline_c); scaling comes after the sum.
NaN stands for a component's `None` ("does not apply to this caption").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycap.errors import RecipeError
from raycap.types import Bool, ComponentScores, Float32

BASELINES = ("greedy", "leave_one_out", "mean")
SCALINGS = ("none", "group")


def baseline_of(kind: str, rewards: Float32, greedy_rewards: Float32) -> Float32:
    """What is subtracted from each sample's reward: b of REINFORCE with a baseline (Rennie et al. 2017, eq. 5).

    Args:
        kind: `greedy` (SCST, Rennie et al. 2017 eq. 9), `leave_one_out` ((Σ − r)/(K − 1), Kool et al. 2019; unbiased),
            or `mean` (Σ/K, Shao et al. 2024, section 4.1.2; biased by the factor (K−1)/K).
        rewards: float32 [B, K].
        greedy_rewards: float32 [B].

    Returns:
        float32, broadcastable to [B, K].

    Raises:
        RecipeError: unknown kind, or leave_one_out with K = 1.
    """
    if kind == "greedy":
        return greedy_rewards[:, None]
    if kind == "mean":
        return rewards.mean(axis=1, keepdims=True)
    if kind == "leave_one_out":
        num_samples = rewards.shape[1]
        if num_samples < 2:
            raise RecipeError("needs at least two samples an image", key="scst.baseline", value=kind,
                              remedy="set scst.num_samples=2 or more, or scst.baseline=greedy")  # fmt: skip
        return (rewards.sum(axis=1, keepdims=True) - rewards) / np.float32(num_samples - 1)
    raise RecipeError(f"expected one of {', '.join(BASELINES)}", key="scst.baseline", value=kind)


@dataclass(frozen=True)
class Advantages:
    """Advantages of a batch and what became of each component.

    Attributes:
        values: float32 [B, K], zero for images that no component applies to.
        kept: bool [B], False for images left with no component; they leave the loss and are counted.
        magnitudes: each component's Σ|w_c (r_c − baseline_c)| over the batch; sums over batches are added.
        applied: number of images that each component applied to.
    """

    values: Float32
    kept: Bool
    magnitudes: dict[str, float]
    applied: dict[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """Each component's share of the magnitudes (they sum to 1, or are all 0)."""
        return shares_of(self.magnitudes)


def shares_of(magnitudes: Mapping[str, float]) -> dict[str, float]:
    """v / Σ v, each part of the sum; all 0 where the sum is."""
    total = sum(magnitudes.values())
    return {name: (value / total if total else 0.0) for name, value in magnitudes.items()}


def combine(
    scores: Mapping[str, ComponentScores], weights: Mapping[str, float], *, baseline: str, scaling: str = "none"
) -> Advantages:
    """A = Σ_c w_c (r_c − baseline_c), then the scaling. (The sum over components is our own; baselines: `baseline_of`.)

    A component with a NaN for any caption of an image (the greedy one included) is taken out for all captions of that
    image; the other components are not rescaled. `scaling="group"` divides an image's advantages by their standard
    deviation over its K samples (GRPO, Shao et al. 2024, section 4.1.2, without a second centring); where they are
    equal but for rounding, they are 0. An image whose components all have weight 0 is not learned from.

    Args:
        scores: rewards by component, each float32 [B, K] and [B].
        weights: weight by component, w_c of this step.
        baseline: see `baseline_of`.
        scaling: `none` or `group`.

    Raises:
        RecipeError: no component, an unknown scaling, group scaling of what is not centred (the greedy baseline: K
            samples that score alike would be divided by nothing), or what `baseline_of` refuses.
    """
    if not scores:
        raise RecipeError("no reward component", key="rewards", remedy="name at least one, such as cider")
    if scaling not in SCALINGS:
        raise RecipeError(f"expected one of {', '.join(SCALINGS)}", key="scst.scaling", value=scaling)
    if scaling == "group" and baseline == "greedy":
        raise RecipeError("needs a baseline from the samples themselves", key="scst.scaling", value=scaling,
                          remedy="set scst.baseline=mean or leave_one_out, or scst.scaling=none")  # fmt: skip
    shape = next(iter(scores.values())).rewards.shape
    total = np.zeros(shape, np.float32)
    kept = np.zeros(shape[0], bool)
    size = np.zeros(shape[0], np.float32)
    magnitudes: dict[str, float] = {}
    applied: dict[str, int] = {}
    for name, score in scores.items():
        applies = ~(np.isnan(score.rewards).any(axis=1) | np.isnan(score.greedy_rewards))
        rewards = np.where(applies[:, None], score.rewards, np.float32(0))
        greedy = np.where(applies, score.greedy_rewards, np.float32(0))
        part = np.float32(weights[name]) * (rewards - baseline_of(baseline, rewards, greedy))
        part = np.where(applies[:, None], part, np.float32(0)).astype(np.float32)
        total += part
        size += np.abs(np.float32(weights[name]) * rewards).max(axis=1)
        if weights[name]:
            kept |= applies
        magnitudes[name] = float(np.abs(part).sum(dtype=np.float64))
        applied[name] = int(applies.sum())
    if scaling == "group":
        total = _scaled(total, size)
    return Advantages(values=total, kept=kept, magnitudes=magnitudes, applied=applied)


_ROUNDING = 1e-5  # of the largest reward's size: what float32 leaves of rewards that are equal


def _scaled(values: Float32, size: NDArray[np.float32]) -> Float32:
    """Advantages [B, K] over their standard deviation by image; 0 where they differ by no more than rounding does.

    Args:
        size: float32 [B], of the rewards that they are differences of.
    """
    spread = values.astype(np.float64).std(axis=1, keepdims=True)
    tied = spread <= _ROUNDING * size[:, None]
    return np.where(tied, 0.0, values / np.where(tied, 1.0, spread)).astype(np.float32)
