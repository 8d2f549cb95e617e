"""One optimizer step on sampled captions: their gradients piece by piece on every rank, added up, limited, applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raycap.data.features import FeatureStore
from raycap.models.accumulate import in_place
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from raycap.rl.diagnostics import ratio_sums
from raycap.rl.losses import denominator_of
from raycap.train.group import Group
from raycap.train.labelled import LabelledSet
from raycap.train.labelled_pass import cross_entropy_gradients, idle_passes
from raycap.train.lease_batch import LeaseBatch, seen_by
from raycap.train.objective import Samples, policy_loss
from raycap.train.optimizing import clip_gradients, micro_batches
from raycap.train.step_figures import Sums


class Descent:
    """Moves a policy along the gradient of the recipe's objective.

    A step's loss is worked through lease by lease, and in a lease a few images at a time: the memory is that of
    `micro_batch` captions, however many there are, or of one image's K where these are more. It is normalised over the
    whole step, so its gradient does not depend on how the step is cut.

    Args:
        captioner: the policy, as the ranks hold it.
        optimizer: of its trainable parameters.
        labelled: captions for `mle_weight`.
        precision: of products.
    """

    def __init__(
        self, captioner: PrefixCaptioner, features: FeatureStore, recipe: SCSTRecipe, group: Group,
        optimizer: torch.optim.Optimizer, *, labelled: LabelledSet | None, seed: int, precision: torch.dtype,
    ) -> None:  # fmt: skip
        self.captioner, self.features, self.recipe, self.group = captioner, features, recipe, group
        self.optimizer, self.labelled, self.seed, self.precision = optimizer, labelled, seed, precision
        self.parameters: list[nn.Parameter] = [p for p in captioner.parameters() if p.requires_grad]

    def __call__(self, leases: Sequence[LeaseBatch], chosen: Sequence[Any], *, step: int, number: int) -> Sums:
        """One optimizer step on some images of each lease.

        Where no rank has anything to learn from, nothing moves, the optimizer's momentum neither.

        Args:
            leases: this rank's.
            chosen: which images of each, an index.
            step: of the learner, which this is a part of.
            number: of this optimizer step within it.

        Returns:
            Sums for the log, of this rank; `descents` and `grad_norm` are the same on all.

        Raises:
            WorkFailed: the gradient is not finite; the weights are those before it.
        """
        recipe, samples = self.recipe, self.recipe.num_samples
        self.optimizer.zero_grad(set_to_none=True)
        parts = [(lease, images, lease.part(images, samples)) for lease, images in zip(leases, chosen, strict=True)]
        mine = sum(denominator_of(recipe.normalize, part.mask) for *_, part in parts)
        denominator = self.group.sum_values([mine])[0]
        sums = Sums({"descents": 1.0, "grad_norm": 0.0})
        if not denominator and not recipe.mle_weight:
            return sums
        idle = self.group.idle_passes(sum(len(self._cuts(len(part) // samples)) for *_, part in parts))
        for lease, images, part in parts:
            if not len(part):
                continue
            seen = seen_by(self.captioner, self.features, lease.lease, recipe, seed=self.seed, kept=lease.kept)
            logprobs = self._accumulate(seen[images], part, denominator, sums)
            if number == 0:
                lease.ratio = ratio_sums(logprobs, part.behavior, part.mask)
        idle_passes(self.captioner, self.features, idle, self.precision)
        if recipe.mle_weight:
            place = step * recipe.ppo_epochs * recipe.minibatches + number
            sums.add({"mle_loss": self._accumulate_labelled(place)})
        self.group.sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, recipe.grad_clip, step=step, remedy="lower scst.lr")
        self.optimizer.step()
        sums.add({"grad_norm": norm})
        return sums

    def _cuts(self, images: int) -> list[tuple[slice, slice]]:
        return list(micro_batches(images, self.recipe.num_samples, self.recipe.micro_batch))

    def _accumulate(self, seen: Tensor, samples: Samples, denominator: float, sums: Sums) -> Tensor:
        """Gradients of captions; their log-probabilities float32 [N, T], without gradient."""
        logprobs = []
        for images, rows in self._cuts(len(seen)):
            with computing_in(self.precision, seen.device):
                loss, scored, part = policy_loss(
                    self.captioner, seen[images], samples.of(rows), self.recipe, denominator
                )
            with in_place():
                loss.backward()
            sums.add(part)
            logprobs.append(scored)
        return torch.cat(logprobs)

    def _accumulate_labelled(self, place: int) -> float:
        """Gradients of `mle_weight` times the cross-entropy of this rank's share of a batch of labelled images."""
        assert self.labelled is not None
        batch = self.labelled.batch(place, batch_size=self.recipe.mle_batch_size, captions_per_image=1, seed=self.seed)
        return cross_entropy_gradients(
            self.captioner, batch, self.features, self.recipe, self.group, captions_per_image=1, seed=self.seed,
            step=place, precision=self.precision, scale=self.recipe.mle_weight,
        )  # fmt: skip
