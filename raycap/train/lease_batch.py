"""A lease's rollouts as the learner works with them: tensors of the captions of those images that are learned from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from raycap.rl.advantages import Advantages
from raycap.train.objective import Samples
from raycap.train.views import training_views
from raycap.types import Lease, Rollouts


@dataclass
class LeaseBatch:
    """What is learned of a lease.

    Attributes:
        lease: as it was given out.
        kept: bool [B], images that some component applies to; `samples` are theirs.
        samples: N = K · kept images.
        ratio: sums of `ratio_sums`, of when its captions were first gone through.
    """

    lease: Lease
    kept: NDArray[np.bool_]
    samples: Samples
    ratio: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: Rollouts, advantages: Advantages, device: torch.device) -> LeaseBatch:
        generation, images = rollout.generation, len(rollout.lease.prompts)
        rows = np.repeat(advantages.kept, generation.num_samples)
        width = generation.tokens.shape[1]
        mask = (np.arange(width)[None] < generation.lengths[:, None]).astype(np.float32)
        values = advantages.values.reshape(images * generation.num_samples)
        arrays = (generation.tokens, mask, generation.behavior_logprobs, values)
        samples = Samples(*(torch.from_numpy(a[rows]).clone().to(device) for a in arrays))
        return cls(rollout.lease, advantages.kept, samples)

    @property
    def images(self) -> int:
        return int(self.kept.sum())

    def places(self, lease_size: int) -> NDArray[np.int64]:
        """Of its images among the step's."""
        return np.flatnonzero(self.kept) + self.lease.number * lease_size

    def part(self, images: Any, num_samples: int) -> Samples:
        """The rows of some of its images, an index."""
        if isinstance(images, slice):
            return self.samples
        rows = (images[:, None] * num_samples + torch.arange(num_samples)).reshape(-1)
        return self.samples.of(rows.to(self.samples.tokens.device))


def seen_by(
    captioner: PrefixCaptioner, features: FeatureStore, lease: Lease, recipe: SCSTRecipe, *, seed: int,
    kept: NDArray[np.bool_] | None = None,
) -> Tensor:  # fmt: skip
    """Features of a lease's images in the views of its step: the same when captions are generated and when learned.

    Args:
        kept: bool [B], the images that are wanted; all when None.
    """
    prompts = [p for index, p in enumerate(lease.prompts) if kept is None or kept[index]]
    return training_views(captioner, features, [p.image_id for p in prompts], recipe, seed=seed, step=lease.step,
                          positions=[p.position for p in prompts])  # fmt: skip
