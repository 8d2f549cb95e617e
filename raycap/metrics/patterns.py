"""Regular expressions as objects, small enough to read a token grammar in.

`a + b` is a sequence and `a | b` a choice; the functions below make the leaves and the repetitions. What recognises
them is in `longest_match`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache


class Pattern:
    """A regular expression over characters: `a + b` is a sequence, `a | b` a choice."""

    def __add__(self, other: Pattern) -> Pattern:
        return Chain((self, other))

    def __or__(self, other: Pattern) -> Pattern:
        return Choice((self, other))


@dataclass(frozen=True, eq=False)
class Chars(Pattern):
    """One character for which `contains` is true."""

    contains: Callable[[str], bool]


@dataclass(frozen=True, eq=False)
class Chain(Pattern):
    """All parts, one after the other."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Choice(Pattern):
    """Any one of the options."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Repeat(Pattern):
    """`body` at least `low` and at most `high` times (no upper limit when None)."""

    body: Pattern
    low: int
    high: int | None


@cache
def one_of(*members: str) -> Chars:
    """One of the given characters, case kept; a member of the form `a..z` is an inclusive range."""
    chars: set[str] = set()
    for member in members:
        if len(member) == 4 and member[1:3] == "..":
            chars.update(map(chr, range(ord(member[0]), ord(member[3]) + 1)))
        else:
            chars.update(member)
    return Chars(frozenset(chars).__contains__)


def none_of(*members: str) -> Chars:
    """One character that is not among the given ones (same notation as `one_of`)."""
    excluded = one_of(*members).contains
    return Chars(lambda char: not excluded(char))


def either(*classes: Chars) -> Chars:
    """One character of any of the classes."""
    tests = tuple(one.contains for one in classes)
    return Chars(lambda char: any(test(char) for test in tests))


_OTHER_CASES = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}  # whose lower or upper case is that ASCII letter


def word(literal: str) -> Pattern:
    """The literal text (lower case or without case), letters in any case."""
    return Chain(tuple(one_of(char, char.upper(), _OTHER_CASES.get(char, "")) for char in literal))


def words(listed: str) -> Pattern:
    """Any of the blank-separated literals."""
    return Choice(tuple(word(item) for item in listed.split()))


def maybe(body: Pattern) -> Pattern:
    """Zero or one."""
    return Repeat(body, 0, 1)


def many(body: Pattern) -> Pattern:
    """Zero or more."""
    return Repeat(body, 0, None)


def some(body: Pattern) -> Pattern:
    """One or more."""
    return Repeat(body, 1, None)


def times(body: Pattern, low: int, high: int) -> Pattern:
    """Between `low` and `high` times."""
    return Repeat(body, low, high)
