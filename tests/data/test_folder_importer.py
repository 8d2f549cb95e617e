from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from raycap.data.detect import import_dataset
from raycap.data.folder import import_folder
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.subsets import split_by_hash
from raycap.errors import DataError


@pytest.fixture
def root(tmp_path: Path, write_picture) -> Path:
    for name in ("0012.jpg", "b.PNG", "sub/c.jpg", "sub/deep/d.gif", ".hidden/e.jpg", "__MACOSX/f.jpg", ".g.jpg"):
        write_picture(tmp_path / "photos" / name)
    return tmp_path / "photos"


def imported(root: Path, **options) -> dict[str, tuple[str, ...]]:
    report = InputReport()
    records = import_folder(root, report=report, **options)
    report.raise_if_refused()
    return {record.image_id: record.captions for record in records}


def test_a_folder_of_pictures_alone_is_unlabelled(root: Path) -> None:
    report = InputReport()
    records = import_folder(root, report=report, seed=2)
    assert [record.image_id for record in records] == ["0012.jpg", "b.PNG", "sub/c.jpg", "sub/deep/d.gif"]
    assert [record.split for record in records] == [split_by_hash(record.image_id, 2) for record in records]
    assert {record.captions for record in records} == {()}
    assert report.summary() == "counted 4 image_without_caption"
    assert import_folder(root, splits={"test"}, report=report, shares={"test": 1.0})[3].split == "test"


def test_a_text_file_beside_each_image(root: Path) -> None:
    (root / "0012.txt").write_text("a dog\n a brown dog \n\n")
    (root / "sub" / "c.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (root / "README.txt").write_text("my pictures")
    assert imported(root) == {
        "0012.jpg": ("a dog", "a brown dog"), "b.PNG": (), "sub/c.jpg": ("a cat",), "sub/deep/d.gif": (),
    }  # fmt: skip


def test_endings_in_capitals_and_linked_folders(root: Path, tmp_path: Path, write_picture) -> None:
    write_picture(tmp_path / "disk" / "h.jpg")
    (tmp_path / "disk" / "h.TXT").write_text("a horse")
    (root / "linked").symlink_to(tmp_path / "disk")
    assert imported(root)["linked/h.jpg"] == ("a horse",)


def test_a_table_may_name_pictures_by_their_whole_path(root: Path) -> None:
    """As `raycap caption /absolute/folder` writes them."""
    line = {"image": str(root / "sub" / "c.jpg"), "caption": "a cat"}
    (root / "captions.jsonl").write_text(json.dumps(line) + "\n")
    assert imported(root)["sub/c.jpg"] == ("a cat",)


@pytest.mark.parametrize("name", ["captions.csv", "captions.txt"])
def test_a_table_in_utf_16_is_said_to_be_that(root: Path, name: str) -> None:
    (root / name).write_text("image,caption\n0012.jpg,a dog\n", encoding="utf-16")
    for format in ("auto", "folder"):
        with pytest.raises(DataError, match=f"{name}.*UTF-16.*UTF-8"):
            import_dataset(root, format=format, report=InputReport())


def test_notes_are_not_captions_where_no_image_has_any(root: Path) -> None:
    (root / "notes.txt").write_text("buy milk")
    report = InputReport()
    import_folder(root, report=report)
    report.raise_if_refused()
    assert report.count("caption_without_image") == 1


def test_csv_with_splits(root: Path) -> None:
    (root / "captions.csv").write_text(
        "file_name,text,split\n0012.jpg,a dog,Train\n0012.jpg,a brown dog,train\n"
        "sub\\c.jpg,a cat,val\n./b.PNG,a bird,test\n"
    )
    records = {record.image_id: record for record in import_folder(root, report=InputReport())}
    assert {name: record.split for name, record in records.items() if name != "sub/deep/d.gif"} == {
        "0012.jpg": "train", "sub/c.jpg": "dev", "b.PNG": "test",
    }  # fmt: skip
    assert records["0012.jpg"].captions == ("a dog", "a brown dog")
    assert records["sub/deep/d.gif"].captions == ()
    assert records["0012.jpg"].path == str(root / "0012.jpg")


def test_json_lines(root: Path) -> None:
    entries = [
        {"image": "0012.jpg", "caption": "a dog"},
        {"image": "0012.jpg", "captions": ["a brown dog", "an animal"]},
        {"image": "b.PNG", "split": "test"},
        {"image": "sub/c.jpg", "caption": None},
    ]
    (root / "anything.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert imported(root)["0012.jpg"] == ("a dog", "a brown dog", "an animal")
    assert imported(root, splits={"test"}, shares={"train": 1.0}) == {"b.PNG": ()}


def test_tables_beside_an_images_folder_and_odd_suffixes(tmp_path: Path, write_picture) -> None:
    picture = write_picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.photo").write_bytes(picture.read_bytes())
    (tmp_path / "captions.csv").write_text("image,caption\na.png,one\nb.photo,two\n")
    assert imported(tmp_path) == {"images/a.png": ("one",), "images/b.photo": ("two",)}


def test_names_match_however_unicode_composes_them(tmp_path: Path, write_picture) -> None:
    decomposed = unicodedata.normalize("NFD", "café.png")
    write_picture(tmp_path / decomposed)
    (tmp_path / "captions.csv").write_text("image,caption\ncafé.png,one\n")
    assert imported(tmp_path) == {decomposed: ("one",)}


def test_adding_an_image_moves_no_other(root: Path, write_picture) -> None:
    before = {record.image_id: record.split for record in import_folder(root, report=InputReport())}
    write_picture(root / "0000.jpg")
    after = {record.image_id: record.split for record in import_folder(root, report=InputReport())}
    assert before.items() < after.items()


JSON_FAULTS = [
    ('{"image": "gone.jpg", "caption": "x"}', "image_missing", "captions.jsonl:2: gone.jpg"),
    ('{"image": "/etc/passwd", "caption": "x"}', "line_malformed", "captions.jsonl:2: '/etc/passwd'"),
    ('{"image": "../photos/b.PNG", "caption": "x"}', "line_malformed", "captions.jsonl:2"),
    ('{"image": 12, "caption": "x"}', "line_malformed", "captions.jsonl:2"),
    ('{"caption": "x"}', "line_malformed", "captions.jsonl:2"),
    ("nonsense", "line_malformed", "captions.jsonl:2: no JSON"),
    ('{"image": "b.PNG", "caption": 5}', "line_malformed", "captions.jsonl:2: the caption is 5"),
    ('{"image": "b.PNG", "caption": " "}', "caption_empty", "captions.jsonl:2: the caption is ' '"),
    ('{"image": "b.PNG", "caption": "\\ud800"}', "wrong_encoding", "captions.jsonl:2: the caption holds a lone"),
    ('{"image": "b.PNG", "split": "holdout"}', "unknown_split", "captions.jsonl:2: 'holdout' is not one of train, dev"),
    ('{"image": "0012.jpg", "split": "test"}', "image_in_two_splits", "captions.jsonl:2: 0012.jpg is in test here"),
]


@pytest.mark.parametrize(("line", "kind", "place"), JSON_FAULTS)
def test_bad_rows_are_named_and_skipped_when_allowed(root: Path, line: str, kind: str, place: str) -> None:
    first = {"image": "0012.jpg", "caption": "a dog", "split": "train"}
    (root / "captions.jsonl").write_text(json.dumps(first) + "\n" + line + "\n")
    strict, lenient = InputReport(), InputReport([kind])
    import_folder(root, report=strict)
    with pytest.raises(DataError) as caught:
        strict.raise_if_refused()
    assert f"1 {kind} [{place}" in str(caught.value)
    records = {record.image_id: record for record in import_folder(root, report=lenient)}
    lenient.raise_if_refused()
    assert lenient.count(kind) == 1
    assert records["0012.jpg"].captions == ("a dog",)
    assert records["0012.jpg"].split == ("test" if kind == "image_in_two_splits" else "train")
    assert len(records) == 4


def test_bad_text_files(root: Path) -> None:
    (root / "0012.txt").write_bytes(b"caf\xe9\nfine\n")
    (root / "b.txt").write_text("")
    (root / "lonely.txt").write_text("no picture")
    report = InputReport("all")
    captions = {record.image_id: record.captions for record in import_folder(root, report=report)}
    assert captions["0012.jpg"] == ("fine",)
    assert [(fault.kind, fault.where) for fault in report.faults] == [
        ("wrong_encoding", "0012.txt:1"), ("caption_empty", "b.txt:1"), ("caption_without_image", "lonely.txt"),
    ]  # fmt: skip


def test_a_file_name_that_is_not_utf8(root: Path, write_picture) -> None:
    source = write_picture(root / "ok.png").read_bytes()
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(source)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = InputReport("all")
    assert len(import_folder(root, report=report)) == 5
    assert [fault.kind for fault in report.faults] == ["wrong_encoding"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image is in this folder"):
        import_folder(tmp_path, report=InputReport())
    (tmp_path / "one.csv").write_text("image,caption\n")
    (tmp_path / "two.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"several tables.*one\.csv, two\.csv"):
        import_folder(tmp_path, report=InputReport())
    (tmp_path / "captions.csv").write_text("picture,words\na,b\n")
    with pytest.raises(DataError, match=r"captions\.csv has no image column \(its header: picture, words\)"):
        import_folder(tmp_path, report=InputReport())


def test_a_broken_picture_in_the_folder(root: Path, tmp_path: Path) -> None:
    (root / "z.jpg").write_bytes(b"oops")
    report = InputReport()
    with pytest.raises(DataError, match=r"1 image_broken \[z\.jpg"):
        prepare(import_folder(root, report=report), tmp_path / "out", report=report)
