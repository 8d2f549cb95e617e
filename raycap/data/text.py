"""Text as it comes in: lines out of a file, captions cleaned. Tables (CSV, JSON lines) are in `tables.py`.

Captions keep their case and punctuation here; tokenisation belongs to metrics and models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raycap.data.input_report import InputReport
from raycap.errors import DataError
from raycap.metrics.ptb import tokenize

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ASCII_LETTER_OR_DIGIT = re.compile(r"[A-Za-z0-9]")


def read_lines(
    path: Path, report: InputReport, *, name: str | None = None, asked: Callable[[str], bool] = lambda line: True
) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text without line end) of a UTF-8 file, with or without BOM.

    A line that is not UTF-8 is reported as `wrong_encoding` and left out; so is a whole file that is UTF-16. Only line
    feeds end a line (or carriage returns, where there is no line feed): U+2028 and form feeds stay in their caption.

    Args:
        name: how the file is called in the report; its file name unless given.
        asked: whether a line is of an asked split, where that can still be told of one that is not UTF-8 (it comes with
            replacement characters); if not, it is only noted.

    Raises:
        DataError: the file cannot be read.
    """
    name = name or path.name
    content = read_bytes(path)
    if content.startswith(_UTF16_MARKS):
        report.add("wrong_encoding", name, "the file is UTF-16; save it as UTF-8")
        return
    content = content.removeprefix(b"\xef\xbb\xbf")
    line_end = b"\n" if b"\n" in content else b"\r"
    for number, raw in enumerate(content.split(line_end), start=1):
        try:
            line = raw.rstrip(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            whose = asked(raw.decode("utf-8", "replace"))
            report.add("wrong_encoding", f"{name}:{number}", not_utf8(raw, error), asked=whose)
            continue
        yield number, line


def read_bytes(path: Path) -> bytes:
    """The file's content; raises DataError with the path when it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path.name}: {error.strerror}", key="data.root", value=str(path), remedy="put the file there"
        ) from error


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """Says which byte is not UTF-8, and shows its neighbourhood readably."""
    around = raw[max(0, error.start - 20) : error.start + 10].decode("utf-8", "backslashreplace")
    byte = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
    return f"{byte} is not UTF-8 (near {around!r}); save the file as UTF-8"


def clean_caption(text: object, where: str, report: InputReport) -> str | None:
    """One caption with single spaces, or None after reporting what is wrong with it.

    All white space and control characters (tabs, line breaks, U+2028 ...) become single spaces. Reported:
    `line_malformed` when it is not a string, `wrong_encoding` for lone surrogates, `caption_empty` when it has no
    letter or digit, or none that is a token for the metrics (they would refuse it as an empty reference, hours later).
    """
    if not isinstance(text, str):
        report.add("line_malformed", where, f"the caption is {text!r} and not a string")
        return None
    if not is_encodable(text):
        report.add("wrong_encoding", where, f"the caption holds a lone surrogate: {text!a}")
        return None
    spaced = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    caption = " ".join(spaced.split())
    if not _has_word(caption):
        report.add("caption_empty", where, f"the caption is {text!r}")
        return None
    return caption


def clean_captions(image: str, texts: Iterable[tuple[object, str]], report: InputReport) -> tuple[str, ...]:
    """The captions of an image, each cleaned; equal ones are noted as `duplicate_id` and stay.

    Rows and lines have no numbers that would tell a copy from what two people wrote alike (ten times in Flickr8k).

    Args:
        texts: its (caption, where).
    """
    first: dict[str, str] = {}
    cleaned = []
    for text, where in texts:
        if (caption := clean_caption(text, where, report)) is None:
            continue
        if caption in first:
            report.note("duplicate_id", where, f"{image} has this caption before, at {first[caption]}: both stay")
        first.setdefault(caption, where)
        cleaned.append(caption)
    return tuple(cleaned)


def _has_word(caption: str) -> bool:
    """Whether a letter or digit is there, and the metrics find a token: they know neither `𝐚` nor `&nbsp;`."""
    if "&" not in caption and _ASCII_LETTER_OR_DIGIT.search(caption):
        return True  # in most captions: of ASCII letters and digits, only those of an entity are no part of a token
    return any(char.isalnum() for char in caption) and bool(tokenize(caption))


def is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8; file names and JSON escapes may hold lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
