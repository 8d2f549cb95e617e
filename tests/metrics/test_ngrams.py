"""Integer n-grams against tuples and counters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.metrics.ngrams import NgramTrie, flatten, repeats, words_of
from raycap.metrics.reference_index import index_references

CAPTIONS = st.lists(st.lists(st.sampled_from(list("abcde")), max_size=9), max_size=5)


def _at(caption: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CAPTIONS)
def test_repeats_are_term_frequencies(captions: list[list[str]]) -> None:
    frequencies = repeats(flatten(captions, {}))
    for n in range(1, 5):
        expected = [Counter(_at(caption, n))[g] for caption in captions for g in _at(caption, n)]
        assert frequencies[n - 1].tolist() == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CAPTIONS, CAPTIONS, CAPTIONS)
def test_trie_finds_what_it_holds_and_nothing_else(
    first: list[list[str]], second: list[list[str]], asked: list[list[str]]
) -> None:
    small, _, _, _ = NgramTrie.empty().extended(first)
    trie, flat, nodes, moved = small.extended(second)
    names = [(), *trie.ngrams()]
    assert set(names[1:]) == {g for caption in first + second for n in range(1, 5) for g in _at(caption, n)}
    for n in range(1, 5):
        assert [names[node] for node in nodes[n - 1]] == [g for caption in second for g in _at(caption, n)]
    assert [names[node] for node in moved[1:]] == list(small.ngrams())
    assert len(flat.words) == sum(map(len, second))
    for n, found in enumerate(trie.locate(trie.flatten(asked)), start=1):
        expected = [g if g in names else None for caption in asked for g in _at(caption, n)]
        assert [names[node] if node >= 0 else None for node in found] == expected


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(CAPTIONS.filter(len), min_size=1, max_size=4))
def test_index_counts_every_ngram_of_every_reference(images: list[list[list[str]]]) -> None:
    index, _ = index_references({str(number): several for number, several in enumerate(images)})
    names = [(), *index.trie.ngrams()]
    counted = Counter()
    for key, begin, end in zip(index.keys, index.first_entry, index.first_entry[1:], strict=False):
        for entry in range(begin, end):
            counted[index.entry_reference[entry], names[key % index.trie.size]] = index.entry_frequency[entry]
            image = key // index.trie.size
            assert index.first_reference[image] <= index.entry_reference[entry] < index.first_reference[image + 1]
    references = [caption for several in images for caption in several]
    assert counted == Counter(
        (r, g) for r, caption in enumerate(references) for n in range(1, 5) for g in _at(caption, n)
    )
    assert np.array_equal(index.reference_words, [len(caption) for caption in references])


def test_tokens_with_white_space_are_two_words() -> None:
    assert words_of(["1\u00a01/2", "cups"]) == ["1", "1/2", "cups"]
    flat = flatten([["1\u00a01/2", "cups"]], {"1": 1, "1/2": 2})
    assert flat.words.tolist() == [1, 2, 3]


@pytest.mark.parametrize("token", ["\u00a0a.com", "a.com\u00a0", "\u3000a.com\u2003"])
def test_white_space_at_a_token_s_ends_is_no_part_of_the_word(token: str) -> None:
    """Split as coco-caption splits it, in the vocabulary, beside it, and where only the trimmed word is known."""
    assert flatten([[token, "is"]], {"a.com": 1}).words.tolist() == [1, 2]
    assert flatten([[token, "a.com"]], {}).words.tolist() == [1, 1]
    trie, flat, _, _ = NgramTrie.empty().extended([[token, "is"], ["a.com"]])
    assert (list(trie.vocabulary), flat.words.tolist()) == (["a.com", "is"], [1, 2, 1])


def test_unknown_words_are_kept_apart() -> None:
    flat = flatten([["x", "y", "x", "a"]], {"a": 1})
    assert flat.words.tolist() == [2, 3, 2, 1]
