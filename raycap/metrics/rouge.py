"""ROUGE-L: the longest common subsequence of candidate and reference (Lin 2004, section 3, eq. 2–4), as coco-caption.

β = 1.2; the best precision and the best recall over the references are combined, which need not come from the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raycap.metrics.ngrams import Floats
from raycap.metrics.reference_index import Tokens

BETA = 1.2


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, Floats]:
    """ROUGE-L of tokenised candidates: the mean of F = (1 + β²)PR / (R + β²P), β = 1.2 (Lin 2004, eq. 2–4).

    P, R: see `rouge_l_caption`.

    Args:
        candidates: C tokenised captions.
        references: C lists of tokenised references, none of them empty lists.

    Returns:
        The corpus score (mean over images) and float64 [C] per image.
    """
    pairs = zip(candidates, references, strict=True)
    scores = np.array([rouge_l_caption(candidate, several) for candidate, several in pairs], np.float64)
    return (float(scores.mean()) if len(scores) else 0.0), scores


def rouge_l_caption(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one tokenised candidate: F = (1 + β²)PR / (R + β²P), β = 1.2 (Lin 2004, eq. 2–4; β as coco-caption).

    P = max_r LCS(c, r) / |c| and R = max_r LCS(c, r) / |r| over the references r: as coco-caption combines several.
    """
    # coco-caption's split makes one empty word out of an empty line; it even matches another empty line
    candidate = candidate or [""]
    masks: dict[str, int] = {}
    for position, token in enumerate(candidate):
        masks[token] = masks.get(token, 0) | 1 << position
    precision = recall = 0.0
    for tokens in references:
        reference = tokens or [""]
        common = _common(masks, len(candidate), reference)
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / len(reference))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(masks: dict[str, int], length: int, reference: Tokens) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): a zero bit marks a step of the sequence."""
    full = (1 << length) - 1
    row = full
    for token in reference:
        matched = row & masks.get(token, 0)
        row = (row + matched | row - matched) & full
    return length - row.bit_count()
