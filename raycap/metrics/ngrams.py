"""n-grams of many captions at once, as integers.

BLEU and CIDEr-D count the 1- to 4-grams of thousands of captions a second. Here captions become one array of word ids,
and n-grams become nodes of a trie kept in sorted arrays: an n-gram's node is found from the node of its first n−1 words
and its last word. So everything is exact (no hashing), compact, read-only and fit for an object store. This module
knows n-grams; what is made of them lives in `reference_index`, `bleu` and `cider`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDER = 4
"""The longest n-gram that BLEU and CIDEr-D look at."""

_WORD_BITS = 32


def words_of(tokens: Sequence[str]) -> list[str]:
    """The words that coco-caption's BLEU and CIDEr-D see in a token list.

    Both split the tokenised line again at *every* white space, so a token that holds a no-break space ("1 1/2", as the
    PTB tokenizer writes a fraction) counts as two words there, and one that begins with it (as a web address may) loses
    it. ROUGE-L splits at plain blanks only.
    """
    return " ".join(tokens).split()


@dataclass(frozen=True)
class FlatCaptions:
    """Captions as one array of word ids, N words in C captions.

    Attributes:
        words: int64 [N], ids ≥ 1.
        caption: int64 [N], the caption a word belongs to.
        lengths: int64 [C], words in each caption.
        begins: for n = 1..4, int64 [·]: the positions where an n-gram begins, ascending.
    """

    words: Ints
    caption: Ints
    lengths: Ints
    begins: tuple[Ints, ...]


class _Growing(dict[str, int]):
    """Gives each new word the next id; 0 stays free."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self) + 1
        return number


def flatten_new(captions: Sequence[Sequence[str]], known: Mapping[str, int]) -> tuple[FlatCaptions, dict[str, int]]:
    """Flat captions and the vocabulary `known`, extended by their new words (`known` itself stays as it is)."""
    vocabulary = _Growing(known)
    ids = np.array(list(map(vocabulary.__getitem__, chain.from_iterable(captions))), np.int64)
    if not all(map(_is_one_word, vocabulary)):
        return flatten_new([words_of(tokens) for tokens in captions], known)
    return _flat(ids, captions), dict(vocabulary)


def flatten(captions: Sequence[Sequence[str]], vocabulary: Mapping[str, int]) -> FlatCaptions:
    """Flat captions in a fixed vocabulary; each word outside of it has an id of its own above the vocabulary's."""
    tokens = list(chain.from_iterable(captions))
    ids = np.array(list(map(vocabulary.get, tokens, repeat(0))), np.int64)
    foreign = np.flatnonzero(ids == 0)
    if len(foreign):
        others = _Growing()
        ids[foreign] = [len(vocabulary) + others[tokens[position]] for position in foreign.tolist()]
        if not all(map(_is_one_word, others)):
            return flatten([words_of(caption) for caption in captions], vocabulary)
    return _flat(ids, captions)


def _is_one_word(token: str) -> bool:
    return token.split() == [token]  # "\u00a0a.com" is one word as well, but another one


def _flat(ids: Ints, captions: Sequence[Sequence[str]]) -> FlatCaptions:
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    caption = np.repeat(np.arange(len(captions)), lengths)
    room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(ids))  # words from here to the caption's end
    begins = tuple(np.flatnonzero(room >= n) for n in range(1, ORDER + 1))
    return FlatCaptions(ids, caption, lengths, begins)


def repeats(flat: FlatCaptions) -> list[Floats]:
    """Term frequencies: for n = 1..4, how often the n-gram at each of `flat.begins[n-1]` occurs in its caption.

    float64, aligned with `flat.begins[n-1]`. An n-gram can only repeat where both n−1-grams inside it repeat, so the
    sort for n > 1 is over those few.
    """
    chosen, key = flat.begins[0], flat.caption << _WORD_BITS | flat.words
    group = np.zeros(len(flat.words) + 1, np.int64)  # equal numbers, equal n-grams; one more for the look ahead
    count = np.zeros(len(flat.words) + 1)
    frequency: list[Floats] = []
    for n, begin in enumerate(flat.begins, start=1):
        if n > 1:
            chosen = begin[(count[begin] > 1) & (count[begin + 1] > 1)]
            key = group[chosen] << _WORD_BITS | group[chosen + 1]
        count = np.ones(len(flat.words) + 1)
        if len(chosen):
            _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
            group[chosen], count[chosen] = inverse, counts[inverse]
        frequency.append(count[begin])
    return frequency


@dataclass(frozen=True)
class NgramTrie:
    """All n-grams (n = 1..4) of some captions, each a numbered node.

    Attributes:
        vocabulary: word → id 1, 2, ...; a word's node is its id.
        codes: for n = 2, 3, 4: int64, ascending, (index of the first n−1 words among the n−1-grams) · 2³² + id of the
            last word. The position in this array is the n-gram's index; its node is that plus `offsets[n−1]`.
    """

    vocabulary: Mapping[str, int]
    codes: tuple[Ints, ...]
    offsets: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [len(self.vocabulary) + 1, *map(len, self.codes)]
        object.__setattr__(self, "offsets", tuple(int(total) for total in np.cumsum([0, *sizes])))
        for codes in self.codes:
            codes.setflags(write=False)

    @property
    def size(self) -> int:
        """Number of nodes (node 0 is nobody)."""
        return self.offsets[-1]

    @classmethod
    def empty(cls) -> NgramTrie:
        """A trie without words."""
        return cls({}, tuple(np.zeros(0, np.int64) for _ in range(ORDER - 1)))

    def flatten(self, captions: Sequence[Sequence[str]]) -> FlatCaptions:
        """Captions in this trie's word ids (see `flatten`)."""
        return flatten(captions, self.vocabulary)

    def extended(self, captions: Sequence[Sequence[str]]) -> tuple[NgramTrie, FlatCaptions, list[Ints], Ints]:
        """A trie that also holds the n-grams of these captions.

        Returns:
            The trie; the captions flat in its word ids; for n = 1..4 the nodes of their n-grams, int64, aligned with
            `flat.begins`; and for each node of this trie its node in the new one, int64 [size].
        """
        flat, vocabulary = flatten_new(captions, self.vocabulary)
        index = flat.words  # of the (n−1)-gram at each position, in the new trie
        moved = np.arange(self.offsets[1])  # index in the new trie of each of this trie's (n−1)-grams
        codes, indices, moves = [], [index], [moved]
        for n, old in enumerate(self.codes, start=2):
            begin = flat.begins[n - 1]
            old_codes = moved[old >> _WORD_BITS] << _WORD_BITS | (old & (1 << _WORD_BITS) - 1)
            new_codes = index[begin] << _WORD_BITS | flat.words[begin + n - 1]
            table, inverse = np.unique(np.concatenate([old_codes, new_codes]), return_inverse=True)
            moved, found = inverse[: len(old)], inverse[len(old) :]
            index = np.zeros_like(flat.words)
            index[begin] = found
            codes.append(table)
            indices.append(found)
            moves.append(moved)
        trie = NgramTrie(vocabulary, tuple(codes))
        nodes = [found + offset for found, offset in zip(indices, trie.offsets, strict=False)]
        mapping = np.concatenate([moved + offset for moved, offset in zip(moves, trie.offsets, strict=False)])
        return trie, flat, nodes, mapping

    def locate(self, flat: FlatCaptions) -> list[Ints]:
        """For n = 1..4 the nodes of the captions' n-grams, −1 where the trie has none; as `flat.begins`."""
        index = np.append(np.where(flat.words <= len(self.vocabulary), flat.words, -1), -1)
        nodes = [index[:-1]]
        for n, table in enumerate(self.codes, start=2):
            begin = flat.begins[n - 1]
            # the n-grams of a trie made from captions hold no unknown (n−1)-gram
            likely = np.flatnonzero((index[begin] >= 0) & (index[begin + 1] >= 0))
            start = begin[likely]
            found = np.full(len(begin), -1, np.int64)
            found[likely] = find(table, index[start] << _WORD_BITS | flat.words[start + n - 1])
            index = np.full(len(index), -1, np.int64)
            index[begin] = found
            nodes.append(np.where(found >= 0, found + self.offsets[n - 1], -1))
        return nodes

    def ngrams(self) -> Iterator[tuple[str, ...]]:
        """All n-grams as words, in the order of their nodes (from node 1 on)."""
        names = ["", *self.vocabulary]
        level: list[tuple[str, ...]] = [(), *((name,) for name in names[1:])]
        yield from level[1:]
        for codes in self.codes:
            level = [(*level[code >> _WORD_BITS], names[code & (1 << _WORD_BITS) - 1]) for code in codes.tolist()]
            yield from level


def find(table: Ints, keys: Ints) -> Ints:
    """int64, as `keys`: the position of each key in the ascending `table`, −1 where it is not there."""
    if not len(table):
        return np.full(len(keys), -1, np.int64)
    at = np.searchsorted(table, keys)
    at[at == len(table)] = 0
    return np.where(table[at] == keys, at, -1)
