"""Self-retrieval: a caption is worth what it tells its image apart from the others of its lease."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycap.errors import RecipeError
from raycap.models.clip import clip_of
from raycap.rewards.context import Context
from raycap.types import CaptionBatch


class SelfRetrievalReward:
    """log p(image | caption) + log B: how much likelier than chance the caption picks its image out of B.

    log p = s_own − log Σ_b exp s_b, s = cosine / temperature (InfoNCE, van den Oord et al. 2018, eq. 4),
    over the distinct images b of the batch, which is a lease: a fixed slice of the step, so the reward does not depend
    on who scores it. None where the batch holds one image only. Contrast within a batch as in Luo et al. 2018
    ("Discriminability objective") and Liu et al. 2018, under `clip.reward`.

    Args:
        temperature: of the softmax; 0.07 is CLIP's at its start.
        batch_size: captions that are embedded at once.

    Raises:
        RecipeError: an option that is not above 0, or `clip.reward` is not set.
    """

    def __init__(self, context: Context, *, temperature: float = 0.07, batch_size: int = 256) -> None:
        self.check_options(temperature=temperature, batch_size=batch_size)
        recipe, folder = context.reward_clip
        self.clip = clip_of(recipe, Path(folder), context.device)
        self.context, self.temperature, self.batch_size = context, temperature, batch_size
        self.signature = f"self_retrieval[{self.clip.name},t{temperature:g}]"

    @staticmethod
    def check_options(*, temperature: float = 0.07, batch_size: int = 256) -> None:
        """Raises RecipeError for what the constructor would refuse."""
        for name, value in (("temperature", temperature), ("batch_size", batch_size)):
            if not value > 0:
                raise RecipeError("expected more than 0", key=f"rewards.self_retrieval.options.{name}", value=value)

    def score(self, batch: CaptionBatch) -> list[float | None]:
        places = {image_id: n for n, image_id in enumerate(dict.fromkeys(batch.image_ids))}
        if len(places) < 2:
            return [None] * len(batch)
        images = np.stack([self.context.image_embedding(image_id) for image_id in places])
        texts = self.clip.embed_texts(batch.captions, self.batch_size)
        logits = (texts @ images.T).astype(np.float64) / self.temperature
        highest = logits.max(axis=1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        own = logits[np.arange(len(batch)), [places[image_id] for image_id in batch.image_ids]]
        return [float(value) for value in own - total + np.log(len(places))]
