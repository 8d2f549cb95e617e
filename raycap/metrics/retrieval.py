"""Self-retrieval: does a caption find its own image among all others? A measure of distinctive captions.

(Dai and Lin 2017; Liu et al. 2018.) On embeddings of one CLIP; a judge's CLIP, never the one that rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raycap.errors import Refused
from raycap.metrics.clipscore import Vectors, check_finite
from raycap.metrics.ngrams import Floats

TIE = 1e-6
"""Similarities closer than this are a tie (float32 products of equal vectors may differ in the last bits)."""

_CELLS_AT_ONCE = 1 << 24  # 64 MiB of float32


def self_retrieval(caption: Vectors, image: Vectors, ranks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall at k: (1/N) Σ_i [rank of image i by cos(caption i, ·) ≤ k] (Dai and Lin 2017; Liu et al. 2018).

    Args:
        caption, image: float32 [N, D], normalised; row i of both belongs together.
        ranks: the k.

    Returns:
        k → recall. Images as similar as the own one share its places evenly: the caption counts with the probability
        that a random order among them puts its image into the first k. So captions that say nothing score k/N.

    Raises:
        Refused: not as many captions as images, or a vector that is not finite.
    """
    above, level = _rivals(caption, image)
    return {k: float(np.clip((k - above) / level, 0, 1).mean()) for k in ranks}


def _rivals(caption: Vectors, image: Vectors) -> tuple[Floats, Floats]:
    """For each caption: images more similar than its own, and images as similar (its own included)."""
    if len(caption) != len(image) or not len(caption):
        raise Refused("as many captions as images are needed", key="caption, image", value=[len(caption), len(image)])
    check_finite(caption, "caption")
    check_finite(image, "image")
    above, level = np.empty(len(caption)), np.empty(len(caption))
    block = max(1, _CELLS_AT_ONCE // len(image))
    for begin in range(0, len(caption), block):
        rows = np.arange(begin, min(begin + block, len(caption)))
        similarity = caption[rows] @ image.T
        lead = similarity - similarity[np.arange(len(rows)), rows][:, None]
        above[rows] = (lead > TIE).sum(axis=1)
        level[rows] = (np.abs(lead) <= TIE).sum(axis=1)
    return above, level
