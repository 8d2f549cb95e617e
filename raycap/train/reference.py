"""The policy that SCST began with, held still beside the one that learns: what the KL penalty is measured to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from raycap.data.features import FeatureStore
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from raycap.train.group import Group
from raycap.train.lease_batch import LeaseBatch, seen_by
from raycap.train.optimizing import micro_batches
from raycap.train.sharding import idle_pass


class Reference:
    """A copy of a captioner as it is now, held by the ranks as they hold the one that learns.

    Args:
        captioner: not held yet.
        precision: of products.
    """

    def __init__(
        self, captioner: PrefixCaptioner, features: FeatureStore, recipe: SCSTRecipe, group: Group, *, seed: int,
        precision: torch.dtype,
    ) -> None:  # fmt: skip
        self.features, self.recipe, self.group = features, recipe, group
        self.seed, self.precision = seed, precision
        shared = {id(p) for p in captioner.parameters()}
        self.captioner = group.still_copy(captioner)
        group.hold(self.captioner)
        self.own: list[nn.Parameter] = [p for p in self.captioner.parameters() if id(p) not in shared]

    @torch.no_grad()
    def score(self, leases: Sequence[LeaseBatch]) -> None:
        """Give the samples of this rank's leases their log-probabilities under it, float32 [N, T]."""
        recipe = self.recipe
        cuts = [list(micro_batches(lease.images, recipe.num_samples, recipe.micro_batch)) for lease in leases]
        idle = self.group.idle_passes(sum(map(len, cuts)))
        for lease, pieces in zip(leases, cuts, strict=True):
            if not pieces:
                continue
            seen = seen_by(self.captioner, self.features, lease.lease, recipe, seed=self.seed, kept=lease.kept)
            scored = []
            for images, rows in pieces:
                part = lease.samples.of(rows)
                with computing_in(self.precision, seen.device):
                    conditioning = self.captioner.encode(seen[images])
                    scored.append(self.captioner.score(conditioning, part.tokens, part.mask, recipe.temperature))
            lease.samples = replace(lease.samples, reference=torch.cat(scored))
        for _ in range(idle):
            idle_pass(self.captioner, self.features)
