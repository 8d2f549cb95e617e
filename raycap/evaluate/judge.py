"""What the judge sees: embeddings of pictures, captions and references under a CLIP that never rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raycap.data.images import open_image
from raycap.metrics.clipscore import ClipEmbeddings
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


def judge_embeddings(
    clip: Clip,
    images: Mapping[str, np.ndarray],
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | None = None,
) -> ClipEmbeddings:
    """Embeddings of one system's captions (and, for the reference metrics, of the references) beside the pictures'."""
    ids = list(candidates)
    spoken = clip.embed_texts([candidates[i] for i in ids])
    embedded = None
    if references is not None:
        flat = clip.embed_texts([text for i in ids for text in references[i]])
        cuts = np.cumsum([len(references[i]) for i in ids])[:-1]
        embedded = dict(zip(ids, np.split(flat, cuts), strict=True))
    return ClipEmbeddings(clip.name, images, dict(zip(ids, spoken, strict=True)), embedded, clip.prompt)
