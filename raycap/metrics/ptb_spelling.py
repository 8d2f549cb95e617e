"""How the reference tokenizer writes a token that it has found: the Penn Treebank's spelling of signs.

Each function takes the matched text and returns the token; lower case comes later. (`None`: no token. What the metrics
drop as punctuation anyway is often dropped here already.)
"""

from __future__ import annotations

import re

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PARENTHESES = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_SPACE_INSIDE = str.maketrans({" ": "\u00a0"})
_MONEY = str.maketrans({"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "₠": "$", "€": "$"})
_VULGAR_FRACTIONS = str.maketrans({"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
_QUOTES = str.maketrans(
    dict.fromkeys("\x91\u2018\u201b\u2039", "`")
    | dict.fromkeys("\x92\u2019\u203a", "'")
    | dict.fromkeys("\x93\u201c\xab", "``")
    | dict.fromkeys('\x94\u201d\xbb"', "''")
)


def nothing(text: str) -> None:
    """No token."""


def no_soft_hyphens(text: str) -> str:
    """Soft hyphens only say where a word may be broken; a token of nothing else is a hyphen."""
    return text.replace("\u00ad", "") or "-"


def quote(text: str) -> str:
    """Quotes and apostrophes in LaTeX's manner."""
    return text.replace("&apos;", "'").replace("&quot;", "''").translate(_QUOTES)


def with_ampersand(text: str) -> str:
    """`&amp;` in any case is an ampersand."""
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


def bound_spaces(text: str) -> str:
    """Blanks inside a token become no-break spaces."""
    return text.translate(_SPACE_INSIDE)


def phone(text: str) -> str:
    """A telephone number: blanks and parentheses inside one token."""
    return face(bound_spaces(text))


def face(text: str) -> str:
    """Parentheses inside a token."""
    return text.translate(_PARENTHESES)


def bracket(text: str) -> str:
    """A bracket of its own."""
    return _BRACKETS[text]


def dashes(text: str) -> str:
    """Three or four hyphens are a dash, which is dropped later; longer lines stay."""
    return "--" if 3 <= len(text) <= 4 else text


def money(text: str) -> str:
    """The currency signs that the Penn Treebank has no sign for."""
    return text.translate(_MONEY)


def fraction(text: str) -> str:
    """The common one-character fractions."""
    return text.translate(_VULGAR_FRACTIONS)


def less_than(text: str) -> str:
    """`&lt;` and the sign itself."""
    return "<"


def greater_than(text: str) -> str:
    """`&gt;` and the sign itself."""
    return ">"
