"""Gradients of the cross-entropy on a batch of labelled images: each rank its share of the images, a few captions at a
time. MLE's whole loss, and SCST's where the recipe mixes it in."""

from __future__ import annotations

import torch

from raycap.data.features import FeatureStore
from raycap.models.accumulate import in_place
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe.sections import Learning
from raycap.rl.losses import cross_entropy
from raycap.train.group import Group
from raycap.train.optimizing import micro_batches
from raycap.train.sharding import idle_pass
from raycap.train.views import training_views
from raycap.types import LabelledBatch


def cross_entropy_gradients(
    captioner: PrefixCaptioner, batch: LabelledBatch, features: FeatureStore, recipe: Learning, group: Group, *,
    captions_per_image: int, seed: int, step: int, precision: torch.dtype, scale: float = 1.0,
) -> float:  # fmt: skip
    """Add `scale` times the gradient of the batch's mean cross-entropy a token to the parameters' gradients.

    Args:
        batch: of all ranks; its captions are those of an image after those of another.
        recipe: how images are seen, and how many captions are worked through at a time.
        step: addresses the views.

    Returns:
        This rank's part of the loss, unscaled.
    """
    device = next(captioner.parameters()).device
    count, words = len(batch.image_ids), float(batch.loss_mask.sum())
    # positions in the batch: what is seen does not depend on the number of ranks
    places = range(count)[group.rank * count // group.size : (group.rank + 1) * count // group.size]
    images = slice(places.start, places.stop)
    rows = slice(places.start * captions_per_image, places.stop * captions_per_image)
    cuts = list(micro_batches(len(places), captions_per_image, recipe.micro_batch))
    idle = group.idle_passes(len(cuts))
    if cuts:
        seen = training_views(captioner, features, batch.image_ids[images], recipe, seed=seed, step=step,
                              positions=places)  # fmt: skip
        tokens, mask = (torch.from_numpy(each[rows]).to(device) for each in (batch.tokens, batch.loss_mask))
    loss_sum = 0.0
    for some, part in cuts:
        with computing_in(precision, device):
            logprobs = captioner.score(captioner.encode(seen[some]), tokens[part], mask[part])
        loss = cross_entropy(logprobs, mask[part], denominator=words)
        with in_place():
            (scale * loss).backward()
        loss_sum += float(loss.detach())
    idle_passes(captioner, features, idle, precision)
    return loss_sum


def idle_passes(captioner: PrefixCaptioner, features: FeatureStore, passes: int, precision: torch.dtype) -> None:
    """Go along with ranks that have more to work through than this one; adds nothing to any gradient."""
    for _ in range(passes):
        with computing_in(precision, next(captioner.parameters()).device):
            nothing = idle_pass(captioner, features)
        nothing.backward()
