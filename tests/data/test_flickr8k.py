from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.data.flickr8k import import_flickr8k
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.errors import DataError


def append(path: Path, content: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def test_all_splits(flickr8k: Path) -> None:
    report = InputReport()
    records = import_flickr8k(flickr8k, report=report)
    report.raise_if_refused()
    assert [(record.image_id, record.split) for record in records] == [
        ("10_a.jpg", "train"), ("0012_b.jpg", "train"), ("30_c.jpg", "train"),
        ("40_d.jpg", "dev"), ("50_e.jpg", "dev"), ("60_f.jpg", "test"),
    ]  # fmt: skip
    assert records[0].captions == ("A dog runs in 1 .", "A brown dog , running .")
    assert [str(note) for note in report.notes] == [
        "Flickr8k.token.txt: 99_gone.jpg.1 is not an image of the imported splits"
    ]


def test_only_the_asked_split_must_be_there(flickr8k: Path) -> None:
    for name in ("Flickr_8k.trainImages.txt", "Flickr_8k.testImages.txt", "images/10_a.jpg", "images/60_f.jpg"):
        (flickr8k / name).unlink()
    report = InputReport()
    records = import_flickr8k(flickr8k, splits={"dev"}, report=report)
    report.raise_if_refused()
    assert [record.image_id for record in records] == ["40_d.jpg", "50_e.jpg"]
    assert report.count("caption_without_image") == 9
    with pytest.raises(DataError, match=r"data\.root = .*Flickr_8k\.testImages\.txt is not there"):
        import_flickr8k(flickr8k, splits={"dev", "test"}, report=InputReport())


def test_the_distributors_spelling_of_the_folder(flickr8k: Path) -> None:
    (flickr8k / "images").rename(flickr8k / "Flicker8k_Dataset")
    records = import_flickr8k(flickr8k, report=InputReport())
    assert records[0].path == str(flickr8k / "Flicker8k_Dataset" / "10_a.jpg")
    (flickr8k / "Flicker8k_Dataset").rename(flickr8k / "somewhere")
    with pytest.raises(DataError, match=r"images/, Flicker8k_Dataset/"):
        import_flickr8k(flickr8k, report=InputReport())


def test_captions_come_in_the_order_of_their_numbers(flickr8k: Path) -> None:
    (flickr8k / "Flickr8k.token.txt").write_text("10_a.jpg#10\tten\n10_a.jpg#2\ttwo\n10_a.jpg#0\tzero\n")
    report = InputReport()
    assert import_flickr8k(flickr8k, report=report)[0].captions == ("zero", "two", "ten")
    assert report.count("image_without_caption") == 5


def add_to(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda root: append(root / name, content)


TOKENS, DEV = "Flickr8k.token.txt", "Flickr_8k.devImages.txt"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a photograph is gone": ("image_missing", lambda root: (root / "images/40_d.jpg").unlink(), "Images.txt:1: 40_d"),
    "an unknown image is listed": ("image_missing", add_to(DEV, "77_x.jpg\n"), "devImages.txt:3: 77_x"),
    "a line has no tab": ("line_malformed", add_to(TOKENS, "10_a.jpg#3 A dog\n"), "token.txt:14: expected name"),
    "a line has no number": ("line_malformed", add_to(TOKENS, "10_a.jpg\tA dog\n"), "token.txt:14: expected"),
    "a list names a path": ("line_malformed", add_to(DEV, "../10_a.jpg\n"), "devImages.txt:3: '../10_a"),
    "a line is latin-1": ("wrong_encoding", add_to(TOKENS, b"10_a.jpg#3\tcaf\xe9\n"), "token.txt:14: byte 0xe9"),
    "a caption is empty": ("caption_empty", add_to(TOKENS, "10_a.jpg#3\t .\n"), "token.txt:14: the caption is"),
    "a caption id is twice there": ("duplicate_id", add_to(TOKENS, "10_a.jpg#1\tDog\n"), "token.txt:14: the caption"),
    "an image is listed twice": ("duplicate_id", add_to(DEV, "40_d.jpg\n"), "devImages.txt:3: 40_d.jpg is"),
    "an image is in two splits": ("image_in_two_splits", add_to(DEV, "10_a.jpg\n"), "devImages.txt:3: 10_a.jpg is in"),
    "a photograph is broken": (
        "image_broken",
        lambda root: (root / "images/40_d.jpg").write_bytes(b"no"),
        "40_d.jpg: ",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_refused_with_its_place_and_skipped_when_allowed(
    name: str, flickr8k: Path, tmp_path: Path
) -> None:
    kind, spoil, place = FAULTS[name]
    spoil(flickr8k)
    strict = InputReport()
    records = import_flickr8k(flickr8k, report=strict)
    with pytest.raises(DataError) as caught:
        prepare(records, tmp_path / "out", report=strict)
    assert f"1 {kind}" in str(caught.value)
    assert place in str(caught.value)
    assert f"data.skip=[{kind}]" in str(caught.value)
    lenient = InputReport([kind])
    dataset = prepare(import_flickr8k(flickr8k, report=lenient), tmp_path / "out", report=lenient)
    assert lenient.count(kind) == 1
    assert len(dataset) == 6 - (kind in ("image_missing", "image_broken") and "77_x" not in place)
    assert dataset.references("10_a.jpg") == ("A dog runs in 1 .", "A brown dog , running .")
    assert ("10_a.jpg" in dataset.ids("dev")) == (kind == "image_in_two_splits")


@pytest.mark.parametrize("other", ["train", "test"])
def test_an_image_in_a_list_that_was_not_asked_for(flickr8k: Path, other: str) -> None:
    append(flickr8k / DEV, "10_a.jpg\n60_f.jpg\n")
    for split in ("train", "dev", "test"):
        if split not in ("dev", other):
            (flickr8k / f"Flickr_8k.{split}Images.txt").unlink()  # a list that is absent and not asked for is no fault
    report, lenient = InputReport(), InputReport(["image_in_two_splits"])
    import_flickr8k(flickr8k, splits={"dev"}, report=report)
    with pytest.raises(DataError, match=r"1 image_in_two_splits"):
        report.raise_if_refused()
    left = {record.image_id for record in import_flickr8k(flickr8k, splits={"dev"}, report=lenient)}
    lenient.raise_if_refused()
    assert left == {"40_d.jpg", "50_e.jpg", "10_a.jpg"} | ({"60_f.jpg"} if other == "train" else set())


def test_faults_of_lists_that_were_not_asked_for_are_counted(flickr8k: Path) -> None:
    append(flickr8k / "Flickr_8k.trainImages.txt", b"10_a.jpg\n../x.jpg\ncaf\xe9.jpg\n77_gone.jpg\n60_f.jpg\n")
    report = InputReport()
    assert len(import_flickr8k(flickr8k, splits={"dev"}, report=report)) == 2
    report.raise_if_refused()
    for kind in ("duplicate_id", "line_malformed", "wrong_encoding", "image_in_two_splits"):
        assert report.count(kind) == 1


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"%s#3 A dog\n", "line_malformed"),
        (b"%s\tA dog\n", "line_malformed"),
        (b"%s A dog\n", "line_malformed"),
        (b"%s#x\tA dog\n", "line_malformed"),
        (b"%s#" + b"9" * 5000 + b"\tA dog\n", "line_malformed"),
        (b"%s#3\tcaf\xe9\n", "wrong_encoding"),
    ],
)
def test_damaged_lines_of_other_splits_are_counted(flickr8k: Path, line: bytes, kind: str) -> None:
    for name in ("10_a.jpg", "elsewhere.jpg"):
        append(flickr8k / TOKENS, line.replace(b"%s", name.encode()))
    report = InputReport()
    assert len(import_flickr8k(flickr8k, splits={"dev"}, report=report)) == 2
    report.raise_if_refused()
    assert report.count(kind) == 2
    for name in ("40_d.jpg", "who", "10_a.j\xff"):
        append(flickr8k / TOKENS, line.replace(b"%s", name.encode()))
    import_flickr8k(flickr8k, splits={"dev"}, report=report)
    assert [fault.where for fault in report.faults if fault.kind == kind] == [f"{TOKENS}:{n}" for n in (16, 17, 18)]


def test_no_lists_at_all(flickr8k: Path) -> None:
    for path in flickr8k.glob("Flickr_8k.*"):
        path.unlink()
    with pytest.raises(DataError, match="no split list"):
        import_flickr8k(flickr8k, report=InputReport())


def test_the_real_photographs(real_flickr8k: Path) -> None:
    report = InputReport()
    records = import_flickr8k(real_flickr8k, report=report)
    report.raise_if_refused()
    counts = {split: sum(record.split == split for record in records) for split in ("train", "dev", "test")}
    assert counts == {"train": 6000, "dev": 1000, "test": 0}
    assert sum(len(record.captions) for record in records) == 35_000
    assert report.count("caption_without_image") == 5460
    assert any("2258277193_586949ec62.jpg.1" in note.detail for note in report.notes)
    dev = import_flickr8k(real_flickr8k, splits={"dev"}, report=(dev_report := InputReport()))
    assert len(dev) == 1000
    assert dev_report.count("caption_without_image") == 35_460


def test_some_real_photographs_prepared(real_flickr8k: Path, tmp_path: Path) -> None:
    report = InputReport()
    records = import_flickr8k(real_flickr8k, report=report)
    twins = [
        record for record in records if record.image_id in ("2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg")
    ]
    dataset = prepare(records[:150] + twins, tmp_path, report=report)
    assert dataset.size(records[0].image_id) == (224, 224)
    assert len(dataset.ids("train", "select")) == 15
    assert report.count("same_picture") == 1
