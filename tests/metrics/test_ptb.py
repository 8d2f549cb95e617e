"""The PTB tokenizer against vectors of the Java tool, and what is promised beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.metrics import ptb
from raycap.metrics.ptb import PUNCTUATION, tokenize

VECTORS = Path(__file__).parent / "vectors"


def _vectors() -> list[tuple[str, str]]:
    plain = json.loads((VECTORS / "nasty_dev.json").read_text(encoding="utf-8"))
    context = json.loads((VECTORS / "context_dependent.json").read_text(encoding="utf-8"))
    return [(one["in"], one["out"]) for one in plain] + [(one["in"], one["next_lower"]) for one in context]


@pytest.mark.parametrize(("caption", "expected"), _vectors())
def test_equals_the_java_tool(caption: str, expected: str) -> None:
    assert " ".join(tokenize(caption)) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's dog isn't here.", ["a", "man", "'s", "dog", "is", "n't", "here"]),
        ("etc. The dog", ["etc.", "the", "dog"]),
        ("Plan B. The dog", ["plan", "b", "the", "dog"]),
        ("fig. 5", ["fig.", "5"]),
        ("fig. leaf", ["fig", "leaf"]),
        ("AT&T at&t", ["at&t", "at", "&", "t"]),
        ("1 1/2 cups", ["1\u00a01/2", "cups"]),
        ("x \u00a0example.com", ["x", "example.com"]),  # a run of blanks goes before an address can begin
        ("ΣΊΣΥΦΟΣ", ["σίσυφος"]),
        ("ΣΊΣΥΦΟΣ-foo", ["σίσυφοσ-foo"]),  # Java's lower case looks over the hyphen
        ("", []),
        ("  ", []),
        (" . ", []),
    ],
)
def test_worked_examples(caption: str, expected: list[str]) -> None:
    assert tokenize(caption) == expected


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_line_breaks_are_white_space(line_break: str) -> None:
    assert tokenize(f"a dog{line_break}runs. A cat{line_break}") == tokenize("a dog runs. A cat ")


EASY = st.text(alphabet="aAbBtsSeEmnIdYo '\",;:!?&-.", max_size=30)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(EASY)
def test_short_cut_changes_nothing(caption: str) -> None:
    assert tokenize(caption) == ptb._cut(caption)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_gives_clean_tokens(caption: str) -> None:
    tokens = tokenize(caption)
    assert not PUNCTUATION & set(tokens)
    assert all(token and " " not in token and "\n" not in token for token in tokens)


def test_memory_is_bounded_for_endless_new_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "_CHUNKS_REMEMBERED", 10)
    monkeypatch.setattr(ptb, "_CHUNKS", ptb._Chunks())
    for number in range(50):
        word = "x" * (number + 1)
        assert tokenize(f"a {word}") == ["a", word]
    assert len(ptb._CHUNKS) == 10
