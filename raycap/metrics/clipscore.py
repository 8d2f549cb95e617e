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
            Refused: an image without one of the two, or with one that is not finite.
        """
        return _stack(self.image, images, "image"), _stack(self.candidate, images, "candidate")

    def reference_rows(self, images: Sequence[str]) -> tuple[Vectors | None, Ints]:
        """Reference vectors of these images, float32 [R, D] normalised, and int64 [R], which image each belongs to.

        Raises:
            Refused: an image without reference vectors, or with some that are not finite.
        """
        if self.references is None:
            return None, np.zeros(0, np.int64)
        _check(self.references, images, "references")
        rows = [np.atleast_2d(np.asarray(self.references[image])) for image in images]
        owner = np.repeat(np.arange(len(rows)), [len(several) for several in rows])
        vectors = _float32(np.concatenate(rows))
        check_finite(vectors, "references", [images[number] for number in owner.tolist()])
        return normalised(vectors), owner


def _check(vectors: Mapping[str, Any], images: Sequence[str], side: str) -> None:
    missing = [image for image in images if image not in vectors]
    if missing:
        raise Refused(f"{len(missing)} image(s) have no {side} embedding", key=f"embeddings.{side}", value=missing[:5])


def _stack(vectors: Mapping[str, Any], images: Sequence[str], side: str) -> Vectors:
    _check(vectors, images, side)
    rows = _float32(np.stack([np.asarray(vectors[image]) for image in images]))
    check_finite(rows, side, images)
    return normalised(rows)


def _float32(values: Any) -> Vectors:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.asarray(values).astype(np.float32)


def check_finite(vectors: Vectors, side: str, names: Sequence[str] | None = None) -> None:
    """Refuse vectors that are no vectors: NaN loses every comparison and would come out as a good score.

    Args:
        vectors: float32 [N, D].
        side: what they stand for: image, candidate, caption, references.
        names: N ids for the message; row numbers otherwise.

    Raises:
        Refused: a row holds NaN or infinity, or its length in float32 is infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.linalg.norm(vectors, axis=1))).tolist()
    if bad:
        found = list(dict.fromkeys(f"row {row}" if names is None else names[row] for row in bad))
        what = f"{len(found)} {side} embedding(s) hold NaN or infinity"
        raise Refused(what, key=f"embeddings.{side}", value=found[:5], remedy="mend the CLIP, its weights or its input")


def normalised(vectors: Any) -> Vectors:
    """Rows of length 1 (a zero row stays zero), float32 [N, D]."""
    rows = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def clip_scores(image: Vectors, candidate: Vectors) -> Floats:
    """CLIPScore of each pair: w · max(cos(c, v), 0) with w = 2.5 (Hessel et al. 2021, section 3, CLIP-S).

    Args:
        image, candidate: float32 [N, D], normalised.

    Returns:
        float64 [N].

    Raises:
        Refused: a vector is not finite.
    """
    check_finite(image, "image")
    check_finite(candidate, "candidate")
    return WEIGHT * np.maximum(_cosines(image, candidate), 0)


def ref_clip_scores(image: Vectors, candidate: Vectors, reference: Vectors, owner: Ints) -> Floats:
    """RefCLIPScore: H-Mean(CLIP-S(c, v), max(max_r cos(c, r), 0)), 2ab/(a + b) (Hessel et al. 2021, section 3).

    CLIP-S is `clip_scores`; the part of the references is not scaled.

    Args:
        image, candidate: float32 [N, D], normalised.
        reference: float32 [R, D], normalised.
        owner: int64 [R], the row of `candidate` a reference belongs to; each row has at least one.

    Returns:
        float64 [N], 0 where both parts are 0.

    Raises:
        Refused: a vector is not finite.
    """
    check_finite(reference, "references")
    scores = clip_scores(image, candidate)
    best = np.zeros(len(candidate))
    np.maximum.at(best, owner, _cosines(candidate[owner], reference))
    total = scores + best
    return np.divide(2 * scores * best, total, out=np.zeros_like(total), where=total > 0)


def _cosines(left: Vectors, right: Vectors) -> Floats:
    return np.einsum("nd,nd->n", left, right).astype(np.float64)
