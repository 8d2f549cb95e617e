from __future__ import annotations

from pathlib import Path

import pytest

from raycap.data.csv_layout import import_csv
from raycap.data.input_report import InputReport
from raycap.data.subsets import split_by_hash
from raycap.errors import DataError

NAMES = [f"{number}_x.jpg" for number in range(40)]


@pytest.fixture
def root(tmp_path: Path, write_picture) -> Path:
    lines = ["image,caption"]
    for name in NAMES:
        write_picture(tmp_path / "Images" / name)
        lines += [f"{name},A dog runs .", f'{name},"A dog , running ""fast"" ."']
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_quoted_captions_and_splits_by_hash(root: Path) -> None:
    report = InputReport()
    records = import_csv(root, report=report, seed=3)
    report.raise_if_refused()
    assert [record.image_id for record in records] == NAMES
    assert records[0].captions == ("A dog runs .", 'A dog , running "fast" .')
    assert [record.split for record in records] == [split_by_hash(name, 3) for name in NAMES]
    shares = {"train": 0.0, "dev": 0.0, "test": 1.0}
    assert {record.split for record in import_csv(root, report=InputReport(), shares=shares)} == {"test"}


def test_only_the_asked_splits_photographs_must_be_there(root: Path) -> None:
    wanted = [name for name in NAMES if split_by_hash(name, 0) == "dev"]
    for name in set(NAMES) - set(wanted):
        (root / "Images" / name).unlink()
    report = InputReport()
    assert [record.image_id for record in import_csv(root, splits={"dev"}, report=report)] == wanted
    report.raise_if_refused()
    assert report.count("caption_without_image") == 2 * (len(NAMES) - len(wanted))


def test_lists_decide_where_they_are_there(root: Path) -> None:
    (root / "Flickr_8k.devImages.txt").write_text("3_x.jpg\n1_x.jpg\n")
    report = InputReport()
    assert [record.image_id for record in import_csv(root, splits={"dev"}, report=report)] == ["3_x.jpg", "1_x.jpg"]
    with pytest.raises(DataError, match=r"Flickr_8k\.testImages\.txt"):
        import_csv(root, splits={"test"}, report=InputReport())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"0_x.jpg,A dog, running\n", "line_malformed"),
        (b"0_x.jpg,caf\xe9\n", "wrong_encoding"),
        (b"0_x.jpg,\n", "caption_empty"),
        (b"gone.jpg,A dog\n", "image_missing"),
        (b"../0_x.jpg,A dog\n", "line_malformed"),
    ],
)
def test_bad_rows_are_named_and_skipped_when_allowed(root: Path, line: bytes, kind: str) -> None:
    with (root / "captions.txt").open("ab") as file:
        file.write(line)
    strict, lenient = InputReport(), InputReport([kind])
    import_csv(root, report=strict)
    with pytest.raises(DataError, match=rf"1 {kind} \[captions.txt:82: "):
        strict.raise_if_refused()
    assert len(import_csv(root, report=lenient)) == 40
    lenient.raise_if_refused()
    assert lenient.count(kind) == 1


def test_a_table_without_the_header_is_refused(root: Path) -> None:
    (root / "captions.txt").write_text("0_x.jpg,A dog\n")
    with pytest.raises(DataError, match=r"image and caption.*captions\.txt and captions\.csv"):
        import_csv(root, report=InputReport())
