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


SPLIT_TABLE = "image,caption,split\n0012.jpg,a dog,test\nb.PNG,a bird,train\n"
OF_OTHERS = [
    ("sub/gone.jpg,a cat,train", "image_missing"),
    ("b.PNG,a bird, on a branch, far,train", "line_malformed"),
    ("/etc/b.jpg,a cat,train", "line_malformed"),
    ("b.PNG,a third bird,trian", "unknown_split"),
    ("b.PNG,a bird again,dev", "image_in_two_splits"),
]


@pytest.mark.parametrize(("line", "kind"), OF_OTHERS)
def test_what_is_wrong_with_rows_of_other_splits_is_counted_and_refuses_nothing(
    root: Path, line: str, kind: str
) -> None:
    (root / "captions.csv").write_text(SPLIT_TABLE + line + "\n")
    whole, test = InputReport(), InputReport()
    import_folder(root, report=whole)
    assert [(fault.kind, fault.where) for fault in whole.faults] == [(kind, "captions.csv:4")]
    records = import_folder(root, splits={"test"}, report=test, shares={"train": 1.0})
    assert [(record.image_id, record.captions) for record in records] == [("0012.jpg", ("a dog",))]
    assert not test.faults
    assert [note.where for note in test.notes if note.kind == kind] == ["captions.csv:4"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0012.jpg,a dog, on a branch, far,test", "line_malformed"),
        ("0012.jpg,a third dog,tset", "unknown_split"),
        ("sub/c.jpg,a cat,tset", "unknown_split"),
        ("sub/c.jpg,a cat, on a branch, far,train", "line_malformed"),  # a shifted field is no split
        ("sub/gone.jpg,a cat,test", "image_missing"),
        ("b.PNG,a bird,test", "image_in_two_splits"),
        ('b.PNG,"a bird\nsub/c.jpg,a cat,train', "line_malformed"),
    ],
)
def test_what_may_be_of_the_asked_split_is_refused(root: Path, line: str, kind: str) -> None:
    (root / "captions.csv").write_text(SPLIT_TABLE.replace("a bird", "one bird") + line + "\n")
    report = InputReport()
    import_folder(root, splits={"test"}, report=report)
    assert {fault.kind for fault in report.faults} == {kind}


def test_pictures_of_other_splits_by_hash_may_be_missing(root: Path) -> None:
    names = [f"{number}.jpg" for number in range(30)]
    (root / "captions.csv").write_text("image,caption\n" + "".join(f"{name},a dog in {name}\n" for name in names))
    for split in ("train", "test"):
        report = InputReport()
        import_folder(root, splits={split}, report=report)
        assert len(report.faults) == [split_by_hash(name, 0) for name in names].count(split) > 0
        assert report.count("image_missing") == 30


def test_lines_of_json_of_other_splits_in_another_encoding(root: Path) -> None:
    lines = [json.dumps({"image": name, "caption": "a dog", "split": split}).encode()
             for name, split in (("0012.jpg", "test"), ("b.PNG", "train"))]  # fmt: skip
    (root / "captions.jsonl").write_bytes(b"\n".join([*lines, b'{"image": "b.PNG", "caption": "caf\xe9"}']))
    report = InputReport()
    import_folder(root, splits={"test"}, report=report)
    assert not report.faults
    import_folder(root, splits={"train"}, report=report)
    assert str(report.faults[0]).startswith("captions.jsonl:3: byte 0xe9")


@pytest.mark.parametrize(
    ("name", "content", "header"),
    [
        ("captions.csv", "image,sentence\n0012.jpg,a dog\n", "image, sentence"),
        ("captions.tsv", "file\tsplit\tcaption_1\n0012.jpg\ttest\ta dog\n", "file, split, caption_1"),
        ("captions.jsonl", '{"image": "b.PNG"}\n{"image": "0012.jpg", "sentences": ["a dog"]}\n', "image, sentences"),
    ],
)
def test_captions_under_another_name_are_refused(root: Path, name: str, content: str, header: str) -> None:
    (root / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name} has no caption column \(its header: {header}\).*call it caption"):
        import_folder(root, report=InputReport())


def test_a_table_may_give_splits_only_and_hold_columns_that_are_noted(root: Path) -> None:
    (root / "captions.csv").write_text("image,split\n0012.jpg,test\n")
    assert imported(root, splits={"test"}, shares={"train": 1.0}) == {"0012.jpg": ()}
    (root / "captions.csv").write_text("image,caption,subset,comment\n0012.jpg,a dog,test,nice\n")
    import_folder(root, report=(report := InputReport()))
    assert [(note.where, note.detail, note.count) for note in report.notes if note.kind == "unknown_column"] == [
        ("captions.csv", "not read: subset, comment", 2)
    ]
    report.raise_if_refused()


def test_a_column_that_comes_twice_is_refused(root: Path) -> None:
    (root / "captions.csv").write_text("image,caption,Caption\n0012.jpg,a dog,the dog\n")
    with pytest.raises(DataError, match=r"captions\.csv has two columns 'caption'"):
        import_folder(root, report=InputReport())


LIST = {"image": "0012.jpg", "captions": ["a dog", "the dog"]}
EQUAL = [
    ("captions.csv", ["image,caption", "0012.jpg,a dog", "0012.jpg,the dog", "./0012.jpg,a  dog"]),
    ("captions.jsonl", [LIST, {"image": "0012.jpg", "caption": "a dog"}]),
    ("captions.jsonl", [LIST | {"captions": ["a dog", "the dog", "a dog"]}]),
]


@pytest.mark.parametrize(("name", "lines"), EQUAL)
def test_equal_captions_of_an_image_stay_and_are_counted(root: Path, name: str, lines: list) -> None:
    """Two people may have written them."""
    (root / name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    report = InputReport()
    records = {record.image_id: record for record in import_folder(root, report=report)}
    report.raise_if_refused()
    assert records["0012.jpg"].captions == ("a dog", "the dog", "a dog")
    assert [note.where for note in report.notes if note.kind == "duplicate_id"] == [f"{name}:{len(lines)}"]


def test_a_second_list_of_an_images_captions_is_refused_or_skipped_and_listed(root: Path) -> None:
    second = {"image": "./0012.jpg", "captions": ["x"]}
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, (LIST, second))))
    strict, lenient = InputReport(), InputReport(["duplicate_id"])
    import_folder(root, report=strict)
    with pytest.raises(
        DataError, match=r"1 duplicate_id \[captions\.jsonl:2: 0012\.jpg has a list .* captions\.jsonl:1"
    ):
        strict.raise_if_refused()
    records = {record.image_id: record for record in import_folder(root, report=lenient)}
    assert records["0012.jpg"].captions == ("a dog", "the dog")
    lenient.raise_if_refused()
    assert lenient.to_json()["skipped"]["counts"] == {"duplicate_id": 1}


def test_keys_without_a_value_hide_none_that_has_one(root: Path) -> None:
    """As pandas' to_json(lines=True) writes a table of which each row fills other columns."""
    lines = [
        {"image": "0012.jpg", "file_name": None, "caption": None, "captions": ["a dog", "the dog"], "text": None},
        {"image": None, "file_name": "b.PNG", "caption": None, "captions": None, "text": "a bird"},
        {"image": "sub/c.jpg", "file_name": None, "caption": "a cat", "captions": [], "text": None},
    ]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = InputReport()
    records = import_folder(root, report=report)
    assert [record.captions for record in records] == [("a dog", "the dog"), ("a bird",), ("a cat",), ()]
    report.raise_if_refused()
    assert report.count("unknown_column") == 0


def test_a_second_name_for_the_image_or_its_caption_is_noted(root: Path) -> None:
    """As a second column of a CSV file is."""
    lines = [
        {"image": "0012.jpg", "caption": "a dog", "text": "the dog"},
        {"image": "b.PNG", "file_name": "c.PNG", "text": "a bird", "mood": "calm"},
        {"image": "sub/c.jpg", "caption": "a cat", "captions": ["a cat"], "text": "the cat"},
    ]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = InputReport()
    records = import_folder(root, report=report)
    report.raise_if_refused()
    assert [record.captions for record in records] == [("a dog",), ("a bird",), ("a cat",), ()]
    assert [str(note) for note in report.notes if note.kind == "unknown_column"] == [
        "captions.jsonl: not read: mood",
        "captions.jsonl:1: not read: text, where another key comes first (lines: 2)",
        "captions.jsonl:2: not read: file_name, where another key comes first (lines: 1)",
    ]


def test_a_line_that_names_a_key_twice_is_malformed(root: Path) -> None:
    (root / "captions.jsonl").write_text('{"image": "0012.jpg", "Caption": "a dog", "caption": "a cat"}\n')
    with pytest.raises(DataError, match=r"1 line_malformed \[captions\.jsonl:1: two keys are 'caption'"):
        imported(root)


def test_pictures_of_one_name_in_many_albums_are_in_every_split(tmp_path: Path, write_picture) -> None:
    for number in range(40):
        write_picture(tmp_path / f"album{number}" / "photo.jpg")
    assert len({record.split for record in import_folder(tmp_path, report=InputReport())}) == 3


def test_lines_with_a_caption_and_captions(root: Path) -> None:
    """As `raycap caption --num-captions 2` writes them: the first is both; a corrected one is neither's."""
    line = {"image": "0012.jpg", "caption": "a dog", "captions": ["a dog", "the dog"]}
    (root / "captions.jsonl").write_text(json.dumps(line))
    assert imported(root)["0012.jpg"] == ("a dog", "the dog")
    (root / "captions.jsonl").write_text(json.dumps(line | {"caption": "a cat"}))
    with pytest.raises(DataError, match=r"1 line_malformed \[captions\.jsonl:1: its caption is not among"):
        imported(root)


def test_keys_of_json_are_read_as_columns_are(root: Path) -> None:
    (root / "captions.jsonl").write_text(json.dumps({"Image": "0012.jpg", "Caption": "a dog", "Split": "Test"}))
    assert imported(root, splits={"test"}, shares={"train": 1.0}) == {"0012.jpg": ("a dog",)}
