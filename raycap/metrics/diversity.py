"""How different are captions from one another: over K samples of an image, and over a whole set.

Over samples: distinct-n (Li et al. 2016), mBLEU (Zhu et al. 2018 as "self-BLEU"; Wang and Chan 2019), self-CIDEr (Wang
and Chan 2019). Over a set: the vocabulary in use and the share of captions that the training references do not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from raycap.errors import Refused
from raycap.metrics.bleu import bleu
from raycap.metrics.cider import DocumentFrequency, PreparedReferences, prepare_references
from raycap.metrics.ngrams import ORDER, Floats
from raycap.metrics.reference_index import Tokens


def distinct_n(samples: Sequence[Tokens], n: int) -> float:
    """|distinct n-grams of K samples| ÷ |words in them|, one image (Li et al. 2016); 0 when there are no words."""
    words = sum(map(len, samples))
    distinct = {tuple(tokens[i : i + n]) for tokens in samples for i in range(len(tokens) - n + 1)}
    return len(distinct) / words if words else 0.0


def mbleu(samples: Sequence[Sequence[Tokens]]) -> Floats:
    """Mean BLEU of each sample against the other K − 1 of its image; high means alike.

    Args:
        samples: N images of K ≥ 2 tokenised samples each.

    Returns:
        float64 [4]: for n = 1..4 (1/K) Σ_k BLEU-n of all k-th samples as a corpus (Shetty et al. 2017; Wang and Chan
        2019).

    Raises:
        Refused: fewer than two samples, or not equally many for every image.
    """
    counts = sorted({len(several) for several in samples})
    if len(counts) != 1 or counts[0] < 2:
        raise Refused("mBLEU needs the same number K ≥ 2 of samples for every image", key="samples", value=counts)
    per_place = [
        bleu([several[k] for several in samples], [[*several[:k], *several[k + 1 :]] for several in samples])[0]
        for k in range(counts[0])
    ]
    return np.mean(per_place, axis=0)


def self_cider(samples: Mapping[str, Sequence[Tokens]], frequency: DocumentFrequency) -> dict[str, float]:
    """Diversity of each image's K samples: 0 when all say the same, 1 when none shares an n-gram with another.

    The kernel K_ij is the CIDEr similarity of samples i and j (mean over n = 1..4 of tf-idf cosines, no clipping and no
    length penalty: it must be positive semi-definite); with its eigenvalues λ, r = √λ_max / Σ√λ and the diversity is
    −log_K r (Wang and Chan 2019, section 3).

    Args:
        samples: image id → K tokenised samples.
        frequency: document frequencies of references, not of the samples.

    Returns:
        image id → diversity, 0..1; 0 for K = 1 and where no sample has any weight.

    Raises:
        Refused: an image without samples.
    """
    prepared = prepare_references(samples, frequency)
    return {image: _spectral_diversity(_kernel(prepared, number)) for image, number in prepared.index.images.items()}


def _kernel(prepared: PreparedReferences, image: int) -> Floats:
    """float64 [K, K]: mean over n of the tf-idf cosines of an image's captions."""
    index, size = prepared.index, prepared.index.trie.size
    first, last = index.first_reference[image], index.first_reference[image + 1]
    keys = slice(*np.searchsorted(index.keys, [image * size, (image + 1) * size]))
    nodes = index.keys[keys] - image * size
    length = np.searchsorted(np.array(index.trie.offsets), nodes, side="right") - 1  # n − 1
    begins = index.first_entry[keys.start : keys.stop + 1]
    entries, column = slice(begins[0], begins[-1]), np.repeat(np.arange(len(nodes)), np.diff(begins))
    weights = np.zeros((last - first, len(nodes)))
    row = index.entry_reference[entries] - first
    weights[row, column] = index.entry_frequency[entries] * np.sqrt(prepared.squared_idf[nodes])[column]
    weights *= prepared.inverse_norms[first:last][:, length]
    return weights @ weights.T / ORDER


def _spectral_diversity(kernel: Floats) -> float:
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    if len(roots) < 2 or not roots.sum():
        return 0.0
    return min(1.0, max(0.0, -math.log(float(roots.max() / roots.sum()), len(roots))))


def vocabulary_size(captions: Iterable[Tokens]) -> int:
    """|{w : w in some caption}|, the distinct words of tokenised captions (van Miltenburg et al. 2018)."""
    return len({token for tokens in captions for token in tokens})


def novel_share(captions: Sequence[Tokens], training: Iterable[Tokens]) -> float:
    """Share of tokenised captions that equal no tokenised training caption; 0 for none.

    ("% novel" of van Miltenburg et al. 2018.)
    """
    known = {" ".join(tokens) for tokens in training}
    return sum(" ".join(tokens) not in known for tokens in captions) / len(captions) if captions else 0.0
