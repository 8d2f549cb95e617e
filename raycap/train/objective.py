"""What a step of SCST makes small: the policy-gradient loss of the recipe, and what the recipe adds to it.

    L = L_pg + β · KL(π ‖ MLE policy) − α · H(π)          (+ λ · cross-entropy on labelled images: `train.learner`)

L_pg is REINFORCE with a baseline, its samples weighted by truncated importance weights where they may be stale, or
PPO's clipped objective, whose ratio is the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from raycap.rl.losses import clipped_loss, importance_weights, kl_penalty, kl_sum, policy_gradient_loss, reduce_tokens


@dataclass(frozen=True)
class Samples:
    """Sampled captions of B images, N = B·K rows, rows of an image as neighbours.

    Attributes:
        tokens: int64 [N, T].
        mask: float32 [N, T], 1 up to and including the first EOS.
        behavior: float32 [N, T], log-probabilities under the policy that sampled.
        advantages: float32 [N].
        reference: float32 [N, T], log-probabilities under the MLE policy; None where the recipe has no use for them.
    """

    tokens: Tensor
    mask: Tensor
    behavior: Tensor
    advantages: Tensor
    reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, rows: slice | Tensor) -> Samples:
        """Some of the rows."""
        reference = None if self.reference is None else self.reference[rows]
        return Samples(self.tokens[rows], self.mask[rows], self.behavior[rows], self.advantages[rows], reference)


def policy_loss(
    captioner: PrefixCaptioner, seen: Tensor, samples: Samples, recipe: SCSTRecipe, denominator: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The loss of some captions; divided by the whole step's `denominator`, so that losses of its parts add up.

    Args:
        seen: features of their images, [B, D] or [B, G, D].

    Returns:
        The loss; log-probabilities under the policy now, float32 [N, T], without gradient; sums over the tokens by
        name, for the log.
    """
    conditioning, given = captioner.encode(seen), (samples.tokens, samples.mask, recipe.temperature)
    entropies = None
    if recipe.entropy_weight:
        logprobs, entropies = captioner.score_with_entropy(conditioning, *given)
    else:
        logprobs = captioner.score(conditioning, *given)
    how: dict[str, Any] = {"normalize": recipe.normalize, "denominator": denominator}
    told = {"tokens": float(samples.mask.sum())}
    if recipe.objective == "ppo":
        loss = clipped_loss(logprobs, samples.behavior, samples.mask, samples.advantages, clip=recipe.ppo_clip, **how)
        told["clipped"] = _clipped(logprobs.detach(), samples, recipe.ppo_clip)
    else:
        weights = None
        if recipe.max_policy_lag > 0 and recipe.importance != "none":
            weights = importance_weights(
                logprobs, samples.behavior, samples.mask, level=recipe.importance, cap=recipe.importance_cap
            )
        loss = policy_gradient_loss(logprobs, samples.mask, samples.advantages, weights=weights, **how)
    told["pg_loss"] = float(loss.detach())
    if samples.reference is not None:
        off_policy = recipe.max_policy_lag > 0 or recipe.ppo_epochs * recipe.minibatches > 1
        ratios = (logprobs, samples.behavior, samples.mask)
        weights = importance_weights(*ratios, cap=recipe.importance_cap) if off_policy else None
        penalty = kl_penalty(logprobs, samples.reference, samples.mask, weights=weights, **how)
        loss = loss + recipe.kl_weight * penalty
        told["kl"] = kl_sum(logprobs, samples.reference, samples.mask)
    if entropies is not None:
        loss = loss - recipe.entropy_weight * reduce_tokens(entropies, samples.mask, **how)
        told["entropy"] = float((entropies.detach() * samples.mask).sum())
    return loss, logprobs.detach(), told


def _clipped(logprobs: Tensor, samples: Samples, clip: float) -> float:
    """Tokens that teach nothing, because their ratio has gone further than `clip` where the advantage wanted it."""
    ratio = ((logprobs - samples.behavior) * samples.mask).exp()
    up = samples.advantages[:, None] > 0
    beyond = torch.where(up, ratio > 1 + clip, ratio < 1 - clip) & (samples.advantages[:, None] != 0)
    return float((beyond & (samples.mask > 0)).sum())


MINIBATCH_STREAM = 6  # of the seeds, see train.seeding


def minibatches(
    places: Sequence[NDArray[np.int64]], recipe: SCSTRecipe, *, seed: int, step: int
) -> Iterator[list[Any]]:
    """What each optimizer step of a learner's step goes through: by lease which of its images, as an index.

    All leases in their order for REINFORCE; for PPO `ppo_epochs` times a seeded shuffle of the step's images, cut into
    `minibatches`: however many ranks there are, the same images make up a minibatch.

    Args:
        places: by lease of this rank, the places of its images among the step's.
    """
    if recipe.ppo_epochs == 1 and recipe.minibatches == 1:
        yield [slice(None)] * len(places)
        return
    for epoch in range(recipe.ppo_epochs):
        key = np.random.SeedSequence([seed, MINIBATCH_STREAM, step, epoch])
        order = np.random.Generator(np.random.Philox(key)).permutation(recipe.batch_size)
        for part in np.array_split(order, recipe.minibatches):
            yield [torch.from_numpy(np.flatnonzero(np.isin(mine, part))) for mine in places]
