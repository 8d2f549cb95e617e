from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.data.csv_layout import import_csv
from raycap.data.folder import import_folder
from raycap.data.folders import IMAGE_FOLDERS
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


@pytest.mark.parametrize("folder", IMAGE_FOLDERS)
def test_the_splits_are_those_of_the_same_folder_read_as_a_users_own(root: Path, folder: str) -> None:
    """Else pictures that a captioner of `folder` was trained on would be scored as test by `csv`."""
    (root / "Images").rename(root / folder)
    as_csv = {record.image_id: record.split for record in import_csv(root, report=InputReport(), seed=3)}
    as_folder = import_folder(root, report=(report := InputReport()), seed=3)
    report.raise_if_refused()
    assert {record.image_id for record in as_folder} == {f"{folder}/{name}" for name in NAMES}
    assert {Path(record.image_id).name: record.split for record in as_folder} == as_csv
    assert len(set(as_csv.values())) == 3


def with_splits(root: Path, split_of: Callable[[int], str]) -> None:
    rows = [f"{name},a dog in {name},{split_of(number)}" for number, name in enumerate(NAMES)]
    (root / "captions.txt").write_text("\n".join(["image,caption,split", *rows]) + "\n")


def test_a_column_of_splits_counts(root: Path) -> None:
    with_splits(root, lambda number: ("Train", "val", "test")[number % 3])
    report = InputReport()
    records = import_csv(root, report=report)
    assert [record.split for record in records] == [("train", "dev", "test")[number % 3] for number in range(40)]
    dev = import_csv(root, splits={"dev"}, report=report)
    assert [record.image_id for record in dev] == NAMES[1::3]
    report.raise_if_refused()
    with_splits(root, lambda number: "test" if number else "holdout")
    import_csv(root, report=report)
    with pytest.raises(DataError, match=r"1 unknown_split \[captions\.txt:2: 'holdout' is not one of"):
        report.raise_if_refused()


def test_an_image_in_two_splits_by_its_rows(root: Path) -> None:
    with_splits(root, lambda number: "train")
    with (root / "captions.txt").open("a") as file:
        file.write("3_x.jpg,another,test\n")
    for splits in (None, {"train"}, {"test"}):
        report = InputReport()
        import_csv(root, splits=splits, report=report)
        with pytest.raises(DataError, match=r"1 image_in_two_splits \[captions\.txt:42: 3_x\.jpg is in test here"):
            report.raise_if_refused()
    report = InputReport("all")
    assert [record.image_id for record in import_csv(root, splits={"test"}, report=report)] == ["3_x.jpg"]


def test_lists_beside_a_column_of_splits_are_refused(root: Path) -> None:
    with_splits(root, lambda number: "train")
    (root / "Flickr_8k.testImages.txt").write_text("3_x.jpg\n")
    with pytest.raises(DataError, match=r"captions\.txt has a column split, and split lists"):
        import_csv(root, splits={"test"}, report=InputReport())


def test_two_tables_are_refused(root: Path) -> None:
    (root / "captions.csv").write_text((root / "captions.txt").read_text())
    with pytest.raises(DataError, match=r"two tables could hold the captions: captions\.txt and captions\.csv"):
        import_csv(root, report=InputReport())


def test_an_image_in_a_list_that_was_not_asked_for(root: Path) -> None:
    (root / "Flickr_8k.trainImages.txt").write_text("3_x.jpg\n1_x.jpg\n")
    (root / "Flickr_8k.testImages.txt").write_text("3_x.jpg\n2_x.jpg\n")
    report = InputReport()
    import_csv(root, splits={"test"}, report=report)
    with pytest.raises(DataError, match=r"1 image_in_two_splits"):
        report.raise_if_refused()


DAMAGED = [
    (b"%s,A dog, running, far\n", "line_malformed"),
    (b'%s,"A "dog" runs\n', "line_malformed"),
    (b"%s,caf\xe9\n", "wrong_encoding"),
]


@pytest.mark.parametrize(("line", "kind"), DAMAGED)
@pytest.mark.parametrize("how", ["by hash", "by list", "by column"])
def test_damaged_rows_of_other_splits_are_counted(root: Path, line: bytes, kind: str, how: str) -> None:
    splits = {name: split_by_hash(name, 0) for name in NAMES}
    if how == "by list":
        (root / "Flickr_8k.testImages.txt").write_text("".join(f"{name}\n" for name in NAMES if splits[name] == "test"))
    if how == "by column":
        with_splits(root, lambda number: splits[NAMES[number]])
    whole = (root / "captions.txt").read_bytes()
    for split, refused in (("train", False), ("test", True)):
        name = next(name for name in NAMES if splits[name] == split)
        (root / "captions.txt").write_bytes(whole + line.replace(b"%s", name.encode()))
        report = InputReport()
        assert len(import_csv(root, splits={"test"}, report=report)) == list(splits.values()).count("test")
        assert [fault.kind for fault in report.faults] == [kind] * refused
        assert report.count(kind) == 1
    (root / "captions.txt").write_bytes(whole + line.replace(b"%s", b"who knows"))
    import_csv(root, splits={"test"}, report=(report := InputReport()))
    assert [fault.kind for fault in report.faults] == [kind]


@pytest.mark.parametrize("importer", [import_csv, import_folder])
def test_both_importers_of_a_table_keep_equal_captions_and_note_them(root: Path, importer: Callable) -> None:
    """Ten images of Flickr8k have one caption from two people; the file with numbers keeps both as well."""
    with (root / "captions.txt").open("a") as file:
        file.write("0_x.jpg,A  dog runs .\n")
    report = InputReport()
    records = {Path(record.image_id).name: record for record in importer(root, report=report)}
    report.raise_if_refused()
    assert records["0_x.jpg"].captions == ("A dog runs .", 'A dog , running "fast" .', "A dog runs .")
    assert [note.where for note in report.notes if note.kind == "duplicate_id"] == ["captions.txt:82"]


def test_with_lists_an_image_that_none_names_is_left_out_and_counted(root: Path) -> None:
    (root / "Flickr_8k.trainImages.txt").write_text("3_x.jpg\n1_x.jpg\n")
    report = InputReport()
    assert [record.image_id for record in import_csv(root, report=report)] == ["3_x.jpg", "1_x.jpg"]
    report.raise_if_refused()
    assert report.count("caption_without_image") == 2 * (len(NAMES) - 2)


def test_columns_that_are_not_read_are_noted(root: Path) -> None:
    (root / "captions.txt").write_text("image,caption,subset,\n0_x.jpg,a dog,test,\n")
    import_csv(root, report=(report := InputReport()))
    assert [str(note) for note in report.notes if note.kind == "unknown_column"] == ["captions.txt: not read: subset"]
