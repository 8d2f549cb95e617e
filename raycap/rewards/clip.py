"""CLIPScore under `clip.reward` as a training reward: needs no references."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycap.models.clip import clip_of
from raycap.rewards.context import Context
from raycap.types import CaptionBatch


class ClipReward:
    """2.5 · max(cos(image, prompt + caption), 0) (Hessel et al. 2021, section 3, CLIP-S), the relevance of the paper on
    self-supervised captioning (Jin 2023, section 2.2: L_unsupv = −cos), scaled.

    Image embeddings are computed beforehand.

    Args:
        batch_size: captions that are embedded at once.

    Raises:
        RecipeError: `clip.reward` is not set.
    """

    def __init__(self, context: Context, *, batch_size: int = 256) -> None:
        recipe, folder = context.reward_clip
        self.clip = clip_of(recipe, Path(folder), context.device)
        self.context, self.batch_size = context, batch_size
        self.signature = f"CLIPScore[{self.clip.name}]"

    def score(self, batch: CaptionBatch) -> list[float | None]:
        texts = self.clip.embed_texts(batch.captions, self.batch_size)
        images = np.stack([self.context.image_embedding(image_id) for image_id in batch.image_ids])
        cosine = (texts * images).sum(axis=1)
        return [2.5 * max(float(value), 0.0) for value in cosine]
