"""Batches for the cross-entropy: images with some of their captions, tokenised once, in seeded epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raycap.errors import DataError
from raycap.models.tokenizer import Tokenizer
from raycap.train.prompts import permutation
from raycap.types import LabelledBatch


class LabelledSet:
    """Captioned images as token ids, and the batches made of them.

    Args:
        captions: captions by image id; the order of the ids is the order of the set.
        tokenizer: of the captioner.
        max_length: captions are cut to this many tokens, EOS included (a cut caption has no EOS to learn).
    """

    def __init__(self, captions: Mapping[str, Sequence[str]], tokenizer: Tokenizer, max_length: int) -> None:
        self.image_ids = tuple(captions)
        self.pad_id, self.unknown_id = tokenizer.pad_id, tokenizer.unknown_id
        self._rows = []
        for image_id, texts in captions.items():
            if not texts:
                raise DataError("has no caption to learn from", key="image_id", value=image_id)
            self._rows.append([[*tokenizer.encode(text), tokenizer.eos_id][:max_length] for text in texts])

    def __len__(self) -> int:
        return len(self.image_ids)

    def steps_per_epoch(self, batch_size: int) -> int:
        return max(1, len(self) // batch_size)

    def batch(self, step: int, *, batch_size: int, captions_per_image: int, seed: int) -> LabelledBatch:
        """The batch of a step: a function of (seed, step) alone.

        An epoch's last images that fill no whole batch are left out of that epoch (each epoch leaves out others).
        """
        size = min(batch_size, len(self))
        epoch, within = divmod(step, self.steps_per_epoch(size))
        order = permutation(seed, epoch, len(self), stream=1)[within * size : (within + 1) * size]
        return self.take(order.tolist(), captions_per_image, seed=seed, epoch=epoch)

    def take(
        self, positions: Sequence[int], captions_per_image: int, *, seed: int = 0, epoch: int = 0
    ) -> LabelledBatch:
        """`captions_per_image` captions of each image, other ones each epoch where an image has more.

        Images with fewer captions repeat some.
        """
        rows = []
        for position in positions:
            texts = self._rows[position]
            order = permutation(seed, epoch, len(texts), stream=2 + position)
            rows += [texts[order[k % len(texts)]] for k in range(captions_per_image)]
        width = max(map(len, rows))
        tokens = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.float32)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
            mask[index, : len(row)] = 1
            if self.unknown_id is not None:
                # An unknown word is read but never learned: the captioner must not say it.
                mask[index, : len(row)][np.asarray(row) == self.unknown_id] = 0
        return LabelledBatch(tuple(self.image_ids[p] for p in positions), tokens, mask)
