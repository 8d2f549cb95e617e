"""BLEU-1..4 of a corpus and of each caption (Papineni et al. 2002, section 2), as coco-caption prints them.

The reference length is the one closest to the candidate's, the shorter of two equally close. coco-caption adds 1e-15 to
matches and 1e-9 to guesses so that nothing divides by zero; its per-image values depend on that, so it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.metrics.ngrams import ORDER, Floats, Ints
from raycap.metrics.reference_index import ReferenceIndex, Tokens, index_references, match

_MATCH_OFFSET, _GUESS_OFFSET = 1e-15, 1e-9


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, for C candidates.

    Attributes:
        matches: float64 [C, 4], clipped n-gram matches for n = 1..4.
        guesses: float64 [C, 4], n-grams of each candidate.
        length: float64 [C], words of each candidate.
        reference_length: float64 [C], words of its closest reference.
    """

    matches: Floats
    guesses: Floats
    length: Floats
    reference_length: Floats

    def total(self) -> BleuCounts:
        """The corpus as one candidate (C = 1)."""
        return BleuCounts(
            self.matches.sum(axis=0, keepdims=True),
            self.guesses.sum(axis=0, keepdims=True),
            self.length.sum(keepdims=True),
            self.reference_length.sum(keepdims=True),
        )

    def scores(self) -> Floats:
        """float64 [C, 4]: min(1, e^(1 − r/c)) · (Π_{m ≤ n} p_m)^(1/n) for n = 1..4 (Papineni et al. 2002, section 2.3).

        p_m: clipped matches ÷ m-grams; c, r: words of the candidate and of its closest reference.
        """
        precision = (self.matches + _MATCH_OFFSET) / (self.guesses + _GUESS_OFFSET)
        mean = np.cumprod(precision, axis=1) ** (1.0 / np.arange(1, ORDER + 1))
        ratio = (self.length + _MATCH_OFFSET) / (self.reference_length + _GUESS_OFFSET)
        penalty = np.exp(np.minimum(1.0 - 1.0 / ratio, 0.0))
        return mean * penalty[:, None]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Floats, Floats]:
    """BLEU-1..4 of tokenised candidates: min(1, e^(1 − r/c)) · exp(Σ_{m ≤ n} (1/n) log p_m), n = 1..4.

    p_m: clipped m-gram matches ÷ m-grams of the candidates; c, r: words of the candidates and of their closest
    references (Papineni et al. 2002, section 2.3). All four are sums over the corpus for its scores.

    Args:
        candidates: C tokenised captions.
        references: C lists of tokenised references.

    Returns:
        Corpus scores, float64 [4], and per-image (sentence) scores, float64 [C, 4].

    Raises:
        Refused: a candidate without references.
    """
    index, _ = index_references({str(number): several for number, several in enumerate(references)})
    counts = bleu_counts(candidates, np.arange(len(candidates)), index)
    return counts.total().scores()[0], counts.scores()


def bleu_counts(candidates: Sequence[Tokens], image: Ints, index: ReferenceIndex) -> BleuCounts:
    """Count matches of C candidates with their images' references (Papineni et al. 2002, section 2.1).

    An n-gram that occurs tf times counts min(tf, its most occurrences in one reference).

    Args:
        candidates: C tokenised captions.
        image: int64 [C], their image numbers in `index` (`index.numbers(ids)`).
        index: the references.
    """
    flat = index.trie.flatten(candidates)
    found = match(index, flat, image)
    where, tf = found.caption[found.held] * ORDER + found.length[found.held], found.frequency[found.held]
    entry, source = index.entries(found.key)
    most = np.zeros(len(found.key), np.int32)
    np.maximum.at(most, source, index.entry_frequency[entry])
    # an n-gram that occurs tf times comes by tf times: / tf; rounding takes 3 · ⅓ back to 1
    matches = np.rint(np.bincount(where, np.minimum(tf, most) / tf, len(candidates) * ORDER))
    guesses = np.maximum(flat.lengths[:, None] - np.arange(ORDER), 0)
    return BleuCounts(
        matches.reshape(-1, ORDER),
        guesses.astype(np.float64),
        flat.lengths.astype(np.float64),
        _closest_lengths(flat.lengths, image, index).astype(np.float64),
    )


def _closest_lengths(lengths: Ints, image: Ints, index: ReferenceIndex) -> Ints:
    first, counts = index.first_reference[image], index.first_reference[image + 1] - index.first_reference[image]
    if not len(image):
        return np.zeros(0, np.int64)
    begin = np.cumsum(counts) - counts
    source = np.repeat(np.arange(len(image)), counts)
    of_reference = index.reference_words[np.arange(len(source)) + (first - begin)[source]]
    # distance first, then length: one number that orders by both
    width = int(of_reference.max()) + 1
    order = np.abs(of_reference - lengths[source]) * width + of_reference
    return np.minimum.reduceat(order, begin) % width
