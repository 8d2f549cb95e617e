"""The lexer's machinery against brute force with `re`, and its rules of precedence."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.metrics.longest_match import Automaton, Lexer, Rule
from raycap.metrics.patterns import Pattern, many, maybe, none_of, one_of, some, times, word, words

PATTERNS: list[tuple[Pattern, str]] = [
    (some(one_of("ab")) + one_of("c"), "[ab]+c"),
    (many(one_of("a")) + maybe(one_of("b") + one_of("c")), "a*(?:bc)?"),
    (times(one_of("a..c"), 2, 3), "[abc]{2,3}"),
    (words("ab abc") + none_of("a"), "(?:ab|abc)[^a]"),
    (many(some(one_of("a")) + one_of("b")), "(?:a+b)*"),
]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(alphabet="abcd", max_size=8))
def test_longest_match_of_the_earliest_rule(text: str) -> None:
    lengths = [
        max((end for end in range(1, len(text) + 1) if re.fullmatch(expression, text[:end])), default=0)
        for _, expression in PATTERNS
    ]
    automaton = Automaton([pattern for pattern, _ in PATTERNS])
    rule, end = automaton.longest(automaton.encode(text), 0)
    assert end == max(lengths)
    assert rule == (lengths.index(end) if end else -1)


def test_what_must_follow_counts_for_the_length_but_is_read_again() -> None:
    lexer = Lexer([Rule(some(one_of("a..z"))), Rule(word("mr") + one_of("."), ahead=one_of(" ")), Rule(one_of(". "))])
    assert list(lexer.tokens("mr. x", 5)) == ["mr.", " ", "x"]
    assert list(lexer.tokens("mr.", 3)) == ["mr", "."]


def test_head_is_as_long_as_it_can_be() -> None:
    lexer = Lexer([Rule(some(one_of("a")), ahead=some(one_of("a"))), Rule(one_of("a"))])
    assert list(lexer.tokens("aaaa", 4)) == ["aaa", "a"]


def test_given_back_characters_become_the_next_token() -> None:
    lexer = Lexer([Rule(word("cannot"), give_back=3), Rule(some(one_of("a..z")))])
    assert list(lexer.tokens("cannot", 6)) == ["can", "not"]


def test_literal_words_ignore_case_and_ranges_keep_it() -> None:
    lexer = Lexer([Rule(word("ab")), Rule(some(one_of("A..Z")) + one_of("!"))])
    assert list(lexer.tokens("aB AB! ab!", 10)) == ["aB", "AB!", "ab"]


def test_unknown_characters_are_skipped_and_share_a_symbol() -> None:
    automaton = Automaton([word("a")])
    assert len(set(automaton.encode("xyz😀é"))) == 1
    assert "😀" not in automaton.symbols
    assert list(Lexer([Rule(word("a"))]).tokens("x a 😀a", 6)) == ["a", "a"]
