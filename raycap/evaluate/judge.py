"""What the judge sees: embeddings of pictures, captions and references under a CLIP that never rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raycap.data.images import open_image
from raycap.errors import Refused, WorkFailed
from raycap.metrics.clipscore import ClipEmbeddings, check_finite
from raycap.models.clip import Clip


def judge_images(
    clip: Clip, paths: Mapping[str, Path], *, max_pixels: int, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Unit embedding float32 [D] of each picture."""
    ids = list(paths)
    embeddings: dict[str, np.ndarray] = {}
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size]
        made = clip.embed_images([open_image(paths[i], max_pixels=max_pixels) for i in part])
        embeddings.update(zip(part, made, strict=True))
    return embeddings


def judge_references(clip: Clip, references: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Unit embeddings float32 [R, D] of each image's references, the CLIP's prompt before every one."""
    flat = clip.embed_texts([text for texts in references.values() for text in texts])
    cuts = np.cumsum([len(texts) for texts in references.values()])[:-1]
    return dict(zip(references, np.split(flat, cuts), strict=True))


@dataclass(frozen=True)
class Judge:
    """A CLIP with what it saw of a split, once for all the systems whose captions it is shown.

    Attributes:
        pictures: image id → embedding [D].
        references: image id → embeddings [R, D].
    """

    clip: Clip
    pictures: Mapping[str, np.ndarray]
    references: Mapping[str, np.ndarray]

    def embeddings(self, captions: Mapping[str, str]) -> ClipEmbeddings:
        """One system's captions beside pictures and references.

        Raises:
            WorkFailed: an embedding is not finite.
        """
        spoken = dict(zip(captions, self.clip.embed_texts(list(captions.values())), strict=True))
        for side, vectors in (("image", self.pictures), ("candidate", spoken), ("references", self.references)):
            _check_judged(side, vectors)
        return ClipEmbeddings(self.clip.name, self.pictures, spoken, self.references, self.clip.prompt)


def _check_judged(side: str, vectors: Mapping[str, np.ndarray]) -> None:
    """What a user's own embeddings would be refused for is a fault of the work where a CLIP has made them."""
    owners = [image_id for image_id, rows in vectors.items() for _ in np.atleast_2d(rows)]
    if not owners:
        return
    try:
        check_finite(np.concatenate([np.atleast_2d(rows) for rows in vectors.values()]), side, owners)
    except Refused as error:
        raise WorkFailed(f"the judge's {error.what}", key=error.key, value=error.value,
                         remedy="mend the judge, or ask for metrics without clipscore") from error  # fmt: skip
