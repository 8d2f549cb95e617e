"""What the captioner sees of an image while it trains: which of its stored views, and which window of that grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import GridWindow
from raycap.train.validation import to_device

STORED_VIEW_STREAM = 5  # of the seeds, see train.seeding


def training_views(
    captioner: PrefixCaptioner, features: FeatureStore, image_ids: Sequence[str], recipe: GridWindow, *, seed: int,
    step: int, positions: Sequence[int],
) -> Tensor:  # fmt: skip
    """Features of some images as they are seen in a step: float32 [B, D] or [B, G, D] where the captioner is.

    Each image is seen in one of its stored views (`features.views` of the recipe; the plain one is among them), drawn
    evenly, unless `recipe.views` keeps to the plain one, and of that the window and mirror that `recipe` asks for.

    Args:
        image_ids: length B.
        positions: length B; what is drawn is a function of (seed, step, position), whoever asks and in what batch.
    """
    chosen = None
    if features.num_views and recipe.views:
        chosen = [_draw(features.num_views + 1, seed, step, position) for position in positions]
    seen = to_device(features, image_ids, captioner, views=chosen)
    return captioner.windows(seen, crop=recipe.crop, flip=recipe.flip, seed=seed, step=step, positions=positions)


def _draw(count: int, seed: int, step: int, position: int) -> int:
    key = np.random.SeedSequence([seed, STORED_VIEW_STREAM, step, position])
    return int(np.random.Generator(np.random.Philox(key)).integers(count))
