from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.data.input_report import InputReport
from raycap.data.tables import csv_columns, read_csv, read_json, read_json_lines
from raycap.data.text import clean_caption, clean_captions, read_lines
from raycap.errors import DataError
from raycap.metrics.ptb import tokenize


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", [(1, "a"), (2, "b"), (3, "")]),
        (b"a\r\nb", [(1, "a"), (2, "b")]),
        (b"a\rb", [(1, "a"), (2, "b")]),
        (codecs.BOM_UTF8 + b"caf\xc3\xa9", [(1, "café")]),
        ("a\u2028b\x0bc\n".encode(), [(1, "a\u2028b\x0bc"), (2, "")]),
    ],
)
def test_lines(tmp_path: Path, content: bytes, lines: list[tuple[int, str]]) -> None:
    report = InputReport()
    assert list(read_lines(write(tmp_path / "f.txt", content), report)) == lines
    assert not report.faults


def test_a_line_in_another_encoding_is_named_and_left_out(tmp_path: Path) -> None:
    report = InputReport()
    path = write(tmp_path / "captions.txt", b"one\ncaf\xe9 au lait\nthree")
    assert list(read_lines(path, report)) == [(1, "one"), (3, "three")]
    assert str(report.faults[0]).startswith("captions.txt:2: byte 0xe9 at column 4 is not UTF-8")


def test_utf16_is_named_as_such(tmp_path: Path) -> None:
    report = InputReport()
    assert not list(read_lines(write(tmp_path / "captions.txt", "ab\n".encode("utf-16")), report))
    assert [(fault.kind, fault.where) for fault in report.faults] == [("wrong_encoding", "captions.txt")]


def test_a_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt"):
        list(read_lines(tmp_path / "gone.txt", InputReport()))


def test_captions_get_single_spaces_and_keep_their_case() -> None:
    report = InputReport()
    assert clean_caption(" A\tdog\u2028 runs\x00fast .\r\n", "here", report) == "A dog runs fast ."
    assert clean_caption("犬が走る", "here", report) == "犬が走る"
    assert not report.faults


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", "caption_empty"), (" \t\n", "caption_empty"), (" . ", "caption_empty"), ("\u200b", "caption_empty"),
     ("𝐚 𝐝𝐨𝐠", "caption_empty"), ("𐐀", "caption_empty"), ("&nbsp;", "caption_empty"), ("???", "caption_empty"),
     (None, "line_malformed"), (7, "line_malformed"), ("a \ud800 dog", "wrong_encoding")],
)  # fmt: skip
def test_unusable_captions_are_reported(text: object, kind: str) -> None:
    report = InputReport()
    assert clean_caption(text, "captions.txt:4", report) is None
    assert [(fault.kind, fault.where) for fault in report.faults] == [(kind, "captions.txt:4")]


@given(st.text())
def test_a_clean_caption_is_stable_and_can_be_stored(text: str) -> None:
    caption = clean_caption(text, "here", InputReport())
    if caption is not None:
        assert clean_caption(caption, "here", InputReport()) == caption
        assert caption.encode("utf-8").splitlines()
        assert "  " not in caption


PIECES = ["&nbsp;", "&mdash;", "&quot;", "&apos;", "&", ";", "n't", "'", "'tis", "-", "\u00ad", "x.[^x=<>]", "<", ">",
          "http://", ".", "$", "#", "7", "½", "𝐚", "é", "犬", "\u0301", " "]  # fmt: skip
"""What the tokenizer drops, cuts or writes anew, and what it does not know."""


@given(st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs", "Cc"]), max_size=6).map("".join))
def test_a_caption_is_clean_only_where_the_metrics_find_words_in_it(text: str) -> None:
    """Else evaluation refuses the reference, after hours of training. The quick answer is the slow one."""
    caption = " ".join(text.split())
    has_words = any(char.isalnum() for char in caption) and bool(tokenize(caption))
    assert clean_caption(text, "here", InputReport()) == (caption if has_words else None)


def test_each_ascii_letter_and_digit_is_in_a_token_whatever_stands_around_it() -> None:
    marks = [chr(code) for code in range(32, 127) if not chr(code).isalnum() and chr(code) != "&"]
    for word in ("a", "S", "t", "7", "n't", "d"):
        for before in marks:
            for after in marks:
                assert any(char.isalnum() for token in tokenize(before + word + after) for char in token)


def test_equal_captions_stay_and_are_noted() -> None:
    report = InputReport()
    texts = [("a dog", "t:1"), ("the dog", "t:2"), (" a  dog", "t:3"), (None, "t:4"), ("a dog", "t:5")]
    assert clean_captions("a.jpg", texts, report) == ("a dog", "the dog", "a dog", "a dog")
    assert [(note.kind, str(note)) for note in report.notes] == [
        ("duplicate_id", f"t:{line}: a.jpg has this caption before, at t:1: both stay") for line in (3, 5)
    ]
    assert [fault.kind for fault in report.faults] == ["line_malformed"]


def test_csv_with_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.csv", b'Image, Caption\na.jpg,"A dog , running ""fast"" ."\nb.jpg,"two\nlines"\n\nc.jpg,A cat\n'
    )
    report = InputReport()
    rows = list(read_csv(path, report))
    assert csv_columns(path) == ["image", "caption"]
    assert [where for where, _ in rows] == ["c.csv:2", "c.csv:3", "c.csv:6"]
    assert [row["caption"] for _, row in rows] == ['A dog , running "fast" .', "two\nlines", "A cat"]
    assert not report.faults


def test_csv_rows_with_a_stray_comma_or_quote_are_malformed_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.csv", b'image,caption\na.jpg,A dog , running\nb.jpg,fine\nc.jpg,"A "cat" sits\nd.jpg,fine too\n'
    )
    report = InputReport()
    assert [row["image"] for _, row in read_csv(path, report)] == ["b.jpg", "d.jpg"]
    assert [fault.where for fault in report.faults] == ["c.csv:2", "c.csv:4"]
    assert "3 fields, the header has 2; a caption with ',' needs quotes" in report.faults[0].detail


@pytest.mark.parametrize(
    ("rows", "refused"),
    [
        ('a.jpg,"a cat, on a\nb.jpg,mat",or so\n', True),  # the second line may be of an asked split
        ("a.jpg,a cat, on a mat\n", False),
        ("b.jpg,a cat, on a mat\n", True),
    ],
)
def test_lines_that_a_stray_quote_joins_are_nobodys_in_particular(tmp_path: Path, rows: str, refused: bool) -> None:
    report = InputReport()
    path = write(tmp_path / "c.csv", f"image,caption\n{rows}".encode())
    assert not list(read_csv(path, report, asked=lambda fields: fields["image"] == "b.jpg"))
    assert [fault.where for fault in report.faults] == ["c.csv:2"] * refused
    assert report.count("line_malformed") == 1


def test_a_quote_that_is_never_closed_says_which_lines_are_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", b'image,caption\na.jpg,fine\nb.jpg,"never closed\nc.jpg,lost\n')
    report = InputReport()
    assert [row["image"] for _, row in read_csv(path, report)] == ["a.jpg"]
    assert [fault.where for fault in report.faults] == ["c.csv:3"]
    assert "lines 3 to 5 are lost" in report.faults[0].detail


def test_tabs_and_semicolons_are_seen_from_the_header(tmp_path: Path) -> None:
    for name, content in [
        ("c.tsv", b"image\tcaption\na.jpg\tone, two\n"),
        ("c.csv", b"image;caption\na.jpg;one, two\n"),
    ]:
        rows = list(read_csv(write(tmp_path / name, content), InputReport()))
        assert rows == [(f"{name}:2", {"image": "a.jpg", "caption": "one, two"})]


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", b'{"image": "a"}\n\n{"image": \n[1]\n{"image": "b"}\n')
    report = InputReport()
    assert [where for where, _ in read_json_lines(path, report)] == ["c.jsonl:1", "c.jsonl:5"]
    assert [(fault.kind, fault.where) for fault in report.faults] == [
        ("line_malformed", "c.jsonl:3"),
        ("line_malformed", "c.jsonl:4"),
    ]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"image": "a", "caption": "x", "caption": "y"}', "an object has a key twice: 'caption'; keep one"),
        ('{"image": "a", "more": {"x": 1, "x": 2}}', "an object has a key twice: 'x'; keep one"),
        ('{"image": "a", "Caption": "x", "caption ": "y"}',
         "two keys are 'caption' but for case and blanks (its keys: image, Caption, caption ); keep one"),
    ],
)  # fmt: skip
def test_a_key_that_comes_twice_is_malformed(tmp_path: Path, line: str, detail: str) -> None:
    """Python's JSON would keep the last one without a word."""
    report = InputReport()
    path = write(tmp_path / "c.jsonl", f'{{" Image": "b"}}\n{line}\n'.encode())
    assert list(read_json_lines(path, report, asked=lambda entry: False)) == [("c.jsonl:1", {"image": "b"})]
    assert [(fault.kind, str(fault)) for fault in report.faults] == [("line_malformed", f"c.jsonl:2: {detail}")]


def test_a_key_twice_in_a_json_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root = .*d\.json: an object has a key twice: 'raw'; keep one"):
        read_json(write(tmp_path / "d.json", b'{"images": [{"raw": "a dog", "raw": "a cat"}]}'))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{", b""])
def test_a_json_document_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"d\.json"):
        read_json(write(tmp_path / "d.json", content))
