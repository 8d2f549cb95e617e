"""Result and reference files: every form that is read, and every fault that is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycap.errors import DataError
from raycap.metrics.files import parse_candidates, parse_references, read_candidates, read_references

ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, {"id": 3}],
    "annotations": [
        {"id": 10, "image_id": 1, "caption": "a dog"},
        {"id": 11, "image_id": 2, "caption": "a cat"},
        {"id": 12, "image_id": 1, "caption": "one dog"},
    ],
}


@pytest.mark.parametrize(
    "text",
    [
        '[{"image_id": 1, "caption": "a dog"}, {"image_id": "2", "caption": ""}]',
        '{"image_id": 1, "caption": "a dog"}\n\n{"image_id": 2, "caption": ""}\n',
        '{"1": "a dog", "2": ""}',
    ],
)
def test_candidates_in_every_form(text: str) -> None:
    assert parse_candidates(text) == {"1": "a dog", "2": ""}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ANNOTATIONS),
        '{"1": ["a dog", "one dog"], "2": ["a cat"]}',
        '{"image_id": 1, "references": ["a dog", "one dog"]}\n{"image_id": 2, "references": ["a cat"]}',
        '{"image_id": 1, "caption": "a dog"}\n{"image_id": 2, "caption": "a cat"}\n'
        '{"image_id": 1, "caption": "one dog"}\n',
    ],
)
def test_references_in_every_form(text: str) -> None:
    assert parse_references(text) == {"1": ["a dog", "one dog"], "2": ["a cat"]}


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0b"])
def test_only_a_line_feed_ends_a_line(mark: str) -> None:
    raw = mark if mark != "\x0b" else "\\u000b"  # JSON takes no bare control character
    text = f'{{"image_id": 1, "caption": "a{raw}dog"}}\r\n{{"image_id": 2, "caption": "b"}}\r\n'
    assert parse_candidates(text) == {"1": f"a{mark}dog", "2": "b"}


def test_a_single_line_is_jsonl_too() -> None:
    assert parse_candidates('{"image_id": 7, "caption": "x"}') == {"7": "x"}
    assert parse_references('{"image_id": 7, "references": ["x"]}') == {"7": ["x"]}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("not json", "JSON"),
        ('[{"image_id": 1, "caption": "x"}', "JSON"),
        ('{"image_id": 1, "caption": "x"}\n{"image_id": 2, "caption": }', "line 2"),
        ('{"image_id": 1, "caption": "x"}\n\n\n{"image_id": 2, "caption": }', "line 4"),
        ('{"image_id": 1, "caption": "x"}\n{"image_id": 2, "image_id": 3, "caption": ""}', "results.json:2"),
        ("[" * 100_000, "JSON"),
        ('{"image_id": 1, "caption": "x"}\n' + "[" * 100_000, "line 2"),
        ("3", "int"),
        ('[{"image_id": 1, "caption": "x"}, {"image_id": "1", "caption": "y"}]', "'1'"),
        ('{"7": "x", "7": "y"}', "'7'"),
        ('[{"caption": "x"}]', "image_id"),
        ('[{"image_id": true, "caption": "x"}]', "image_id"),
        ('[{"image_id": 1.5, "caption": "x"}]', "image_id"),
        ('[{"image_id": 1}]', "caption"),
        ('[{"image_id": 1, "caption": null}]', "caption"),
        ('{"9": 4}', "'9'"),
        ("[3]", "image_id"),
    ],
)
def test_refused_candidates_name_the_fault(text: str, named: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_candidates(text, "results.json")
    assert named in str(refused.value)


def _without(**changes: Any) -> str:
    return json.dumps({**ANNOTATIONS, **changes})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (_without(images=[{"id": 1}, {"id": 3}]), "'2'"),
        (_without(images=None), "images"),
        (_without(images=[{"id": 1}, {"id": 2}, {"id": "1"}]), "'1'"),
        (_without(annotations=[{"image_id": 1}]), "caption"),
        ('{"5": "one string"}', "'5'"),
        ('{"5": ["x", 3]}', "'5'"),
        ('{"image_id": 1, "references": ["x"]}\n{"image_id": 1, "references": ["y"]}', "'1'"),
    ],
)
def test_refused_references_name_the_fault(text: str, named: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_references(text, "refs.json")
    assert named in str(refused.value)


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_candidates(tmp_path / "nowhere.json")
    broken = tmp_path / "latin.json"
    broken.write_bytes('{"1": "café"}'.encode("latin-1"))
    with pytest.raises(DataError, match="latin"):
        read_references(broken)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bom.json"
    file.write_text('{"1": "café"}', encoding="utf-8-sig")
    assert read_candidates(file) == {"1": "café"}
