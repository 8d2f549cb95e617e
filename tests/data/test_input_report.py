from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycap.data.input_report import KINDS, InputReport
from raycap.errors import DataError


def test_all_refused_kinds_come_in_one_error_with_totals_places_and_remedy() -> None:
    report = InputReport(["caption_empty"])
    for number in range(5):
        report.add("image_missing", f"list.txt:{number}", f"{number}.jpg is not there")
    report.add("line_malformed", "captions.txt:7", "no tab")
    report.add("caption_empty", "captions.txt:9", "the caption is ''")
    with pytest.raises(DataError) as caught:
        report.raise_if_refused()
    message = str(caught.value)
    assert caught.value.key == "data.skip"
    assert "5 image_missing" in message
    assert "list.txt:0: 0.jpg is not there" in message
    assert "and 2 more" in message
    assert "1 line_malformed [captions.txt:7: no tab]" in message
    assert "captions.txt:9" not in message
    assert "data.skip=[caption_empty,image_missing,line_malformed]" in message


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_refused_by_default_and_skipped_counted_and_listed_when_allowed(
    kind: str, tmp_path: Path
) -> None:
    strict, lenient = InputReport(), InputReport([kind])
    for report in (strict, lenient):
        report.add(kind, "file:3", "what it is", count=2)
    with pytest.raises(DataError, match=rf"2 {kind} \[file:3: what it is\]"):
        strict.raise_if_refused()
    lenient.raise_if_refused()
    assert lenient.count(kind) == 2
    assert lenient.summary() == f"skipped 2 {kind}"
    lenient.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["skipped"]["counts"] == {kind: 2}
    assert written["skipped"]["items"] == [{"kind": kind, "where": "file:3", "detail": "what it is", "count": 2}]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_all_skips_every_kind() -> None:
    report = InputReport("all")
    for kind in KINDS:
        report.add(kind, "here", "so")
    report.raise_if_refused()
    assert len(report.skipped) == len(KINDS)


def test_notes_are_counted_and_listed_but_never_refused() -> None:
    report = InputReport()
    report.note("caption_without_image", "captions.txt", "of another split", count=3)
    report.raise_if_refused()
    assert report.summary() == "counted 3 caption_without_image"
    assert report.to_json()["noted"]["items"][0]["where"] == "captions.txt"


def test_unknown_kinds_are_errors() -> None:
    with pytest.raises(DataError, match=r"data\.skip = \['image_misssing'\]: unknown kind.*image_missing"):
        InputReport(["image_misssing"])
    with pytest.raises(ValueError, match="not a kind"):
        InputReport().add("nonsense", "here", "so")


def test_nothing_wrong_says_so() -> None:
    assert InputReport().summary() == "nothing skipped"
