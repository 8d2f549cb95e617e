"""CIDEr-D: consensus of a candidate with its references, tf-idf weighted (Vedantam et al. 2015, eq. 1–3; CIDEr-D).

What coco-caption prints as "CIDEr" is this CIDEr-D. Document frequencies are a thing of their own, so that training can
freeze them on the training references and evaluation take them from the evaluated references. The end-of-sequence token
counts where `DocumentFrequency.eos` names one: in references, frequencies, and those candidates that finished.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycap.errors import Refused
from raycap.metrics.ngrams import ORDER, Floats, Ints, NgramTrie
from raycap.metrics.reference_index import Matches, ReferenceIndex, Tokens, index_references, match

SIGMA = 6.0
EOS = "\x04"
"""The end-of-sequence token as a word: a control character, which no tokenised caption can spell."""


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' reference sets each n-gram occurs (df of Vedantam et al. 2015, eq. 1). Frozen: looking up
    adds nothing.

    Attributes:
        trie: the n-grams.
        counts: int64 [trie.size], images for each node.
        num_images: N of the idf.
        eos: the token that was appended to every reference, or None.
    """

    trie: NgramTrie
    counts: Ints
    num_images: int
    eos: str | None = None

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

    @classmethod
    def from_references(cls, references: Mapping[str, Sequence[Tokens]], eos: str | None = None) -> DocumentFrequency:
        """Count over tokenised references (image id → captions).

        Raises:
            Refused: an image without references.
        """
        return _frequency_of(index_references(references, eos=eos)[0], eos)

    def __getitem__(self, ngram: Sequence[str]) -> int:
        """Images whose references hold this n-gram (n = 1..4), 0 for an unseen one."""
        if not 1 <= len(ngram) <= ORDER:
            return 0
        node = self.trie.locate(self.trie.flatten([list(ngram)]))[len(ngram) - 1]
        return int(self.counts[node[0]]) if len(node) == 1 and node[0] >= 0 else 0

    def __len__(self) -> int:
        """Number of distinct n-grams."""
        return self.trie.size - 1

    def to_bytes(self) -> bytes:
        """A compact file image (compressed npz) for `from_bytes`."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"codes_{n}": array for n, array in enumerate(self.trie.codes, start=2)}
        arrays["words"] = np.frombuffer(" ".join(self.trie.vocabulary).encode(), np.uint8)
        arrays["eos"] = np.frombuffer((self.eos or "").encode(), np.uint8)
        np.savez_compressed(buffer, counts=self.counts, num_images=np.int64(self.num_images), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> DocumentFrequency:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            words = arrays["words"].tobytes().decode().split()
            vocabulary = {word: number for number, word in enumerate(words, start=1)}
            trie = NgramTrie(vocabulary, tuple(arrays[f"codes_{n}"] for n in range(2, ORDER + 1)))
            eos = arrays["eos"].tobytes().decode() or None
            return cls(trie, arrays["counts"], int(arrays["num_images"]), eos)


def _frequency_of(index: ReferenceIndex, eos: str | None) -> DocumentFrequency:
    counts = np.bincount(index.key_nodes, minlength=index.trie.size)
    return DocumentFrequency(index.trie, counts, index.num_images, eos)


@dataclass(frozen=True)
class PreparedReferences:
    """References ready to score candidates against: counts, idf, norms and lengths, computed once.

    Attributes:
        index: the references' n-gram counts, R references.
        squared_idf: float64 [trie.size], idf² of each node.
        unseen_squared_idf: idf² of an n-gram that no counted reference holds: (log N)².
        inverse_norms: float64 [R, 4], 1 / ‖tf-idf‖ of each reference for n = 1..4, 0 where the norm is 0.
        bigrams: int64 [R], bigrams of each reference, which is what coco-caption takes for its length.
        eos: as in the document frequencies.
    """

    index: ReferenceIndex
    squared_idf: Floats
    unseen_squared_idf: float
    inverse_norms: Floats
    bigrams: Ints
    eos: str | None


def prepare_training(
    references: Mapping[str, Sequence[Tokens]], eos: str | None = None
) -> tuple[DocumentFrequency, PreparedReferences]:
    """Document frequencies of the training references, and these references prepared under them, in one pass.

    df of an n-gram: the number of images whose references hold it, of Vedantam et al. 2015, eq. 1, where
    g = tf · log(N / max(1, df)) weights it.

    Raises:
        Refused: an image without references.
    """
    index, _ = index_references(references, eos=eos)
    frequency = _frequency_of(index, eos)
    return frequency, _prepare(index, frequency.counts, frequency)


def prepare_references(references: Mapping[str, Sequence[Tokens]], frequency: DocumentFrequency) -> PreparedReferences:
    """Prepare tokenised references (image id → captions) under given document frequencies.

    The weight of an n-gram is g = tf · log(N / max(1, df)), tf its count, as coco-caption has it (Vedantam et al. 2015,
    eq. 1, without its division by the caption's length: the cosine of eq. 2 does not see it, CIDEr-D's clipping does);
    ‖g‖ is that of eq. 2.

    Raises:
        Refused: an image without references.
    """
    index, moved = index_references(references, frequency.trie, frequency.eos)
    counts = np.zeros(index.trie.size, np.int64)
    counts[moved] = frequency.counts
    return _prepare(index, counts, frequency)


def _prepare(index: ReferenceIndex, counts: Ints, frequency: DocumentFrequency) -> PreparedReferences:
    log_images = np.log(float(max(frequency.num_images, 1)))
    squared_idf = (log_images - np.log(np.maximum(counts, 1))) ** 2
    node = index.entry_nodes
    length = np.searchsorted(np.array(index.trie.offsets), node, side="right") - 1  # n − 1
    weight = index.entry_frequency.astype(np.float64) ** 2 * squared_idf[node]
    references = len(index.reference_words)
    norms = np.sqrt(np.bincount(index.entry_reference * np.int64(ORDER) + length, weight, references * ORDER))
    inverse = _inverse(norms).reshape(references, ORDER)
    bigrams = _bigrams(index.reference_words)
    return PreparedReferences(index, squared_idf, float(log_images**2), inverse, bigrams, frequency.eos)


def _bigrams(words: Ints) -> Ints:
    return np.maximum(words - 1, 0)


def _inverse(norms: Floats) -> Floats:
    """1 / norm, and 0 for 0: there the numerator is 0 as well."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def cider_d(
    candidates: Sequence[Tokens],
    image_ids: Sequence[str],
    prepared: PreparedReferences,
    finished: Sequence[bool] | None = None,
) -> Floats:
    """CIDEr-D of each candidate c against its image's m references s (Vedantam et al. 2015, CIDEr-D; Σ_n as in eq. 3).

    (10 / 4m) Σ_n Σ_s exp(−(l_c − l_s)² / 2σ²) · min(gⁿ(c), gⁿ(s)) · gⁿ(s) / (‖gⁿ(c)‖ ‖gⁿ(s)‖), n = 1..4, σ = 6, gⁿ the
    weights of `prepare_references`, l the number of bigrams, as coco-caption has it.

    Args:
        candidates: C tokenised captions; several may belong to one image.
        image_ids: C image ids.
        prepared: those images' references.
        finished: C flags, whether the caption ended by itself. Needed where `prepared.eos` is set (the token is
            appended to finished candidates only, so stopping in the middle gains nothing), ignored otherwise.

    Returns:
        float64 [C], ten times the mean over references and n = 1..4 of the clipped cosine times exp(−Δ²/2σ²).

    Raises:
        Refused: an image without prepared references; `finished` missing; lengths that differ.
    """
    if len(candidates) != len(image_ids):
        raise Refused("as many image ids as candidates are needed", key="image_ids", value=len(image_ids))
    if prepared.eos is not None:
        if finished is None or len(finished) != len(candidates):
            raise Refused("the references end in EOS, so each candidate needs its `finished` flag", key="finished")
        end = prepared.eos
        candidates = [[*tokens, end] if done else tokens for tokens, done in zip(candidates, finished, strict=True)]
    return _score(candidates, prepared.index.numbers(image_ids), prepared)


def cider_d_corpus(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, Floats]:
    """CIDEr-D as coco-caption's evaluation prints it: document frequencies from the evaluated references.

    The formula of `cider_d` (Vedantam et al. 2015, CIDEr-D), and (1/C) Σ of it.

    Args:
        candidates: C tokenised captions.
        references: C lists of tokenised references.

    Returns:
        The corpus score (mean) and float64 [C] per image.

    Raises:
        Refused: a candidate without references.
    """
    index, _ = index_references({str(number): several for number, several in enumerate(references)})
    return cider_d_of_index(candidates, index)


def cider_d_of_index(candidates: Sequence[Tokens], index: ReferenceIndex) -> tuple[float, Floats]:
    """`cider_d_corpus` on counted references: candidate i belongs to image number i.

    (Vedantam et al. 2015, CIDEr-D; the formula stands at `cider_d`.)
    """
    frequency = _frequency_of(index, None)
    scores = _score(candidates, np.arange(len(candidates)), _prepare(index, frequency.counts, frequency))
    return (float(scores.mean()) if len(scores) else 0.0), scores


def _score(candidates: Sequence[Tokens], image: Ints, prepared: PreparedReferences) -> Floats:
    index, count = prepared.index, len(candidates)
    flat = index.trie.flatten(candidates)
    found = match(index, flat, image)
    inverse_norms = _candidate_norms(found, prepared, count)
    entry, source = index.entries(found.key)
    held, reference = found.held[source], index.entry_reference[entry]
    caption, length, tf = found.caption[held], found.length[held], found.frequency[held]
    tf_reference = index.entry_frequency[entry]
    # min(tf·idf, tf_r·idf)·tf_r·idf, CIDEr-D's clipping; an n-gram that occurs tf times comes by tf times: / tf
    dot = np.minimum(tf, tf_reference) * tf_reference / tf * prepared.squared_idf[found.node[held]]
    cosine = dot * inverse_norms[caption * ORDER + length] * prepared.inverse_norms[reference, length]
    delta = _bigrams(flat.lengths)[caption] - prepared.bigrams[reference]
    total = np.bincount(caption, cosine * np.exp(delta**2 / (-2 * SIGMA**2)), count)
    references = index.first_reference[image + 1] - index.first_reference[image]
    return 10.0 * total / (ORDER * references)


def _candidate_norms(found: Matches, prepared: PreparedReferences, candidates: int) -> Floats:
    squared = np.where(found.node >= 0, prepared.squared_idf[found.node], prepared.unseen_squared_idf)
    where = found.caption * ORDER + found.length
    return _inverse(np.sqrt(np.bincount(where, found.frequency * squared, candidates * ORDER)))
