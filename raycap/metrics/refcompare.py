"""RefCompare: the share of human captions that CLIP finds less relevant to the image than the generated caption.

From "Self-Supervised Image Captioning with CLIP" (Jin 2023, section 3.1, in words; no equation), which leaves
open which human captions are meant: its per-image figures cannot come from an image's five references alone. So
both readings are here: `own_refs` over the image's own references, `pooled` over those of the whole split.
"""

from __future__ import annotations

import numpy as np

from raycap.metrics.clipscore import Vectors, check_finite
from raycap.metrics.ngrams import Floats, Ints

TIE = 1e-6
"""Relevances closer than this are a tie, which counts half: the same text embedded in two batches differs by less."""

_CELLS_AT_ONCE = 1 << 24  # 64 MiB of float32


def own_refs(image: Vectors, candidate: Vectors, reference: Vectors, owner: Ints) -> Floats:
    """Share of the image's own references that are less relevant than its candidate (Jin 2023, section 3.1).

    (1/|R|) Σ_{r ∈ R} ([cos(r, v) < cos(c, v)] + ½[cos(r, v) = cos(c, v)]), v the image, c its candidate, R its own
    references.

    Args:
        image, candidate: float32 [N, D], normalised.
        reference: float32 [R, D], normalised.
        owner: int64 [R], the image a reference belongs to; each image has at least one.

    Returns:
        float64 [N], 0..1.

    Raises:
        Refused: a vector is not finite.
    """
    _check(image, candidate, reference)
    ours = np.einsum("nd,nd->n", image, candidate)
    theirs = np.einsum("nd,nd->n", image[owner], reference)
    won = np.bincount(owner, _points(ours[owner] - theirs), len(image))
    return won / np.bincount(owner, minlength=len(image))


def pooled(image: Vectors, candidate: Vectors, reference: Vectors, owner: Ints | None = None) -> Floats:
    """Share of *all* references of the evaluated split that are less relevant to the image than its candidate.

    The formula of `own_refs` with R all references of the split: the other reading of the same section 3.1.

    Args:
        image, candidate: float32 [N, D], normalised.
        reference: float32 [R, D], normalised, of all images.
        owner: not used; here so that both readings are called alike.

    Returns:
        float64 [N], 0..1. Memory is bounded: images are taken in blocks.

    Raises:
        Refused: a vector is not finite.
    """
    _check(image, candidate, reference)
    ours = np.einsum("nd,nd->n", image, candidate)
    shares = np.empty(len(image))
    block = max(1, _CELLS_AT_ONCE // max(len(reference), 1))
    for begin in range(0, len(image), block):
        rows = slice(begin, begin + block)
        shares[rows] = _points(ours[rows, None] - image[rows] @ reference.T).mean(axis=1)
    return shares


def _check(image: Vectors, candidate: Vectors, reference: Vectors) -> None:
    for side, vectors in (("image", image), ("candidate", candidate), ("references", reference)):
        check_finite(vectors, side)


def _points(lead: np.ndarray) -> Floats:
    """1 for a win, ½ for a tie, 0 for a loss."""
    return (lead > TIE) * 0.5 + (lead >= -TIE) * 0.5
