"""CLIPScore and RefCLIPScore on embeddings (Hessel et al. 2021, section 3).

No model here: whoever has a CLIP computes the embeddings (captions and references with `PROMPT` in front) and says its
name, which goes into the signature, because scores of two CLIPs cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycap.errors import Refused
from raycap.metrics.ngrams import Floats, Ints

PROMPT = "A photo depicts "
"""Stands before every caption and reference when it is embedded."""

WEIGHT = 2.5

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class ClipEmbeddings:
    """Embeddings of images, candidates and references by one CLIP; they need not be normalised.

    Attributes:
        name: the CLIP, for the signature ("ViT-B-32/openai").
        image: image id → vector [D].
        candidate: image id → vector [D] of the candidate with the prompt.
        references: image id → array [R, D] of its references with the prompt; None when not computed.
        prompt: what stood before every caption and reference, for the signature.
    """

    name: str
    image: Mapping[str, Any]
    candidate: Mapping[str, Any]
    references: Mapping[str, Any] | None = None
    prompt: str = PROMPT

    def pairs(self, images: Sequence[str]) -> tuple[Vectors, Vectors]:
        """(image, candidate) vectors of these images, float32 [N, D] each, normalised.

        Raises:
            Refused: an image without one of the two.
        """
        return _stack(self.image, images, "image"), _stack(self.candidate, images, "candidate")

    def reference_rows(self, images: Sequence[str]) -> tuple[Vectors | None, Ints]:
        """Reference vectors of these images, float32 [R, D] normalised, and int64 [R], which image each belongs to.

        Raises:
            Refused: an image without reference vectors.
        """
        if self.references is None:
            return None, np.zeros(0, np.int64)
        _check(self.references, images, "references")
        rows = [np.atleast_2d(np.asarray(self.references[image], np.float32)) for image in images]
        owner = np.repeat(np.arange(len(rows)), [len(several) for several in rows])
        return normalised(np.concatenate(rows)), owner


def _check(vectors: Mapping[str, Any], images: Sequence[str], side: str) -> None:
    missing = [image for image in images if image not in vectors]
    if missing:
        raise Refused(f"{len(missing)} image(s) have no {side} embedding", key=f"embeddings.{side}", value=missing[:5])


def _stack(vectors: Mapping[str, Any], images: Sequence[str], side: str) -> Vectors:
    _check(vectors, images, side)
    return normalised(np.stack([np.asarray(vectors[image], np.float32) for image in images]))


def normalised(vectors: Any) -> Vectors:
    """Rows of length 1 (a zero row stays zero), float32 [N, D]."""
    rows = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def clip_scores(image: Vectors, candidate: Vectors) -> Floats:
    """CLIPScore of each pair: 2.5 · max(cos, 0).

    Args:
        image, candidate: float32 [N, D], normalised.

    Returns:
        float64 [N].
    """
    return WEIGHT * np.maximum(_cosines(image, candidate), 0)


def ref_clip_scores(image: Vectors, candidate: Vectors, reference: Vectors, owner: Ints) -> Floats:
    """RefCLIPScore: harmonic mean of CLIPScore and the best max(cos(candidate, reference), 0), that one unscaled.

    Args:
        image, candidate: float32 [N, D], normalised.
        reference: float32 [R, D], normalised.
        owner: int64 [R], the row of `candidate` a reference belongs to; each row has at least one.

    Returns:
        float64 [N], 0 where both parts are 0.
    """
    best = np.zeros(len(candidate))
    np.maximum.at(best, owner, _cosines(candidate[owner], reference))
    scores = clip_scores(image, candidate)
    total = scores + best
    return np.divide(2 * scores * best, total, out=np.zeros_like(total), where=total > 0)


def _cosines(left: Vectors, right: Vectors) -> Floats:
    return np.einsum("nd,nd->n", left, right).astype(np.float64)
