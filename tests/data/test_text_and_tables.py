from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.data.input_report import InputReport
from raycap.data.tables import csv_columns, read_csv, read_json, read_json_lines
from raycap.data.text import clean_caption, read_lines
from raycap.errors import DataError


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


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{", b""])
def test_a_json_document_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"d\.json"):
        read_json(write(tmp_path / "d.json", content))
