"""Which n-grams each image's references hold, and how often: what BLEU and CIDEr-D compare a candidate with.

Built once for a set of images, read-only afterwards, all arrays. The index knows counts only; idf and norms are
`cider`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raycap.errors import Refused
from raycap.metrics.ngrams import ORDER, FlatCaptions, Floats, Ints, NgramTrie, find, repeats

Tokens = Sequence[str]


@dataclass(frozen=True)
class ReferenceIndex:
    """The references of I images (R references in all) as n-gram counts.

    Attributes:
        trie: holds at least the n-grams of these references.
        images: image id → number 0..I−1.
        first_reference: int64 [I+1], the references of image i are first_reference[i] .. first_reference[i+1]−1.
        reference_words: int64 [R], words of each reference (the end-of-sequence token included where there is one).
        keys: int64, ascending, image · trie.size + node for every n-gram of every image.
        first_entry: int64 [keys+1], the entries of key k are first_entry[k] .. first_entry[k+1]−1.
        entry_reference, entry_frequency: int32, one entry for each n-gram of each reference: the reference's number
            and how often the n-gram occurs in it.
    """

    trie: NgramTrie
    images: Mapping[str, int]
    first_reference: Ints
    reference_words: Ints
    keys: Ints
    first_entry: Ints
    entry_reference: np.ndarray
    entry_frequency: np.ndarray

    @property
    def num_images(self) -> int:
        """Number of images, I."""
        return len(self.images)

    @property
    def key_nodes(self) -> Ints:
        """int64 [keys]: the trie node of each key."""
        return self.keys % self.trie.size

    @property
    def entry_nodes(self) -> Ints:
        """int64 [entries]: the trie node of each entry."""
        return np.repeat(self.key_nodes, np.diff(self.first_entry))

    def entries(self, keys: Ints) -> tuple[Ints, Ints]:
        """All entries of some keys, one key after the other: (entries, which of `keys` each belongs to)."""
        first, counts = self.first_entry[keys], self.first_entry[keys + 1] - self.first_entry[keys]
        source = np.repeat(np.arange(len(keys)), counts)
        return np.arange(len(source)) + np.repeat(first - (np.cumsum(counts) - counts), counts), source

    def numbers(self, image_ids: Sequence[str]) -> Ints:
        """int64: the images' numbers.

        Raises:
            Refused: an id has no references here.
        """
        try:
            return np.fromiter(map(self.images.__getitem__, image_ids), np.int64, len(image_ids))
        except KeyError as unknown:
            raise Refused(
                "the image has no references", key="image_id", value=unknown.args[0], remedy="prepare its references"
            ) from None


def index_references(
    references: Mapping[str, Sequence[Tokens]], trie: NgramTrie | None = None, eos: str | None = None
) -> tuple[ReferenceIndex, Ints]:
    """Count the n-grams of all references.

    Args:
        references: image id → tokenised references, at least one each.
        trie: n-grams that are known already; the index's trie holds them too.
        eos: appended to every reference when given.

    Returns:
        The index, and for each node of `trie` its node in the index's trie (int64 [trie.size]).

    Raises:
        Refused: an image without references.
    """
    empty = [image for image, captions in references.items() if not captions]
    if empty:
        raise Refused(
            f"{len(empty)} image(s) have no reference", key="references", value=empty[:3], remedy="leave them out"
        )
    per_image = np.fromiter(map(len, references.values()), np.int64, len(references))
    captions = [caption for several in references.values() for caption in several]
    if eos is not None:
        captions = [[*caption, eos] for caption in captions]
    whole, flat, nodes, moved = (trie or NgramTrie.empty()).extended(captions)
    first_reference = np.append(0, np.cumsum(per_image))
    keys, first_entry, entry_reference, entry_frequency = _count(flat, nodes, first_reference, whole.size)
    index = ReferenceIndex(
        trie=whole,
        images={image: number for number, image in enumerate(references)},
        first_reference=first_reference,
        reference_words=flat.lengths,
        keys=keys,
        first_entry=first_entry,
        entry_reference=entry_reference,
        entry_frequency=entry_frequency,
    )
    for array in vars(index).values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return index, moved


def _count(
    flat: FlatCaptions, nodes: list[Ints], first_reference: Ints, size: int
) -> tuple[Ints, Ints, np.ndarray, np.ndarray]:
    """Group all n-grams by (image, node, reference) with one sort of one packed integer each.

    (I images · trie.size · references of an image stays below 2⁶³ for any corpus that fits in memory.)
    """
    per_image = np.diff(first_reference)
    image_of = np.repeat(np.arange(len(per_image)), per_image)
    slot_of = np.arange(len(image_of)) - first_reference[image_of]
    slots = int(per_image.max(initial=1))
    where = np.concatenate([flat.caption[begin] for begin in flat.begins])
    packed = np.sort((image_of[where] * size + np.concatenate(nodes)) * slots + slot_of[where])
    begins = np.flatnonzero(np.diff(packed, prepend=-1))
    frequency = np.diff(np.append(begins, len(packed)))
    pair, slot = np.divmod(packed[begins], slots)
    key_begins = np.flatnonzero(np.diff(pair, prepend=-1))
    reference = first_reference[pair // size] + slot
    return (
        pair[key_begins],
        np.append(key_begins, len(pair)),
        reference.astype(np.int32),
        frequency.astype(np.int32),
    )


@dataclass(frozen=True)
class Matches:
    """The M n-grams (n = 1..4) of C candidates; a repeated n-gram appears once for each occurrence.

    Attributes:
        caption: int64 [M], the candidate.
        length: int64 [M], n − 1.
        frequency: float64 [M], how often the n-gram occurs in its candidate.
        node: int64 [M], its trie node, −1 where the trie has none.
        held: int64 [H], those of the M that the image's references hold.
        key: int64 [H], their places in `ReferenceIndex.keys`.
    """

    caption: Ints
    length: Ints
    frequency: Floats
    node: Ints
    held: Ints
    key: Ints


def match(index: ReferenceIndex, flat: FlatCaptions, image: Ints) -> Matches:
    """Look the candidates' n-grams up among their images' references.

    Args:
        flat: C candidates in the word ids of `index.trie`.
        image: int64 [C], the candidates' image numbers.
    """
    nodes = index.trie.locate(flat)
    first_key = image[flat.caption] * index.trie.size
    holds = np.append(np.ones(len(flat.words), bool), False)  # whether the image holds the (n−1)-gram at a position
    held, keys, before = [], [], 0
    for n, (begin, node) in enumerate(zip(flat.begins, nodes, strict=True), start=1):
        # references that hold an n-gram hold both (n−1)-grams in it: few are left to look up
        likely = np.flatnonzero((node >= 0) & holds[begin] & (holds[begin + 1] if n > 1 else True))
        start = begin[likely]
        key = find(index.keys, first_key[start] + node[likely])
        there = np.flatnonzero(key >= 0)
        held.append(before + likely[there])
        keys.append(key[there])
        holds = np.zeros(len(holds), bool)
        holds[start[there]] = True
        before += len(begin)
    return Matches(
        caption=np.concatenate([flat.caption[begin] for begin in flat.begins]),
        length=np.repeat(np.arange(ORDER), [len(begin) for begin in flat.begins]),
        frequency=np.concatenate(repeats(flat)),
        node=np.concatenate(nodes),
        held=np.concatenate(held),
        key=np.concatenate(keys),
    )
