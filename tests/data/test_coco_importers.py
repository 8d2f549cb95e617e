"""COCO's own annotations and Karpathy's split files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycap.data.coco import import_coco
from raycap.data.input_report import InputReport
from raycap.data.karpathy import import_karpathy
from raycap.errors import DataError


def coco_file(root: Path, split: str, ids: list[int], write_picture, year: str = "2017") -> dict[str, Any]:
    document: dict[str, Any] = {"images": [], "annotations": []}
    for number in ids:
        name = f"{number:012d}.jpg"
        write_picture(root / f"{split}{year}" / name)
        document["images"].append({"id": number, "file_name": name, "height": 6, "width": 8})
        document["annotations"] += [
            {"id": number * 10 + place, "image_id": number, "caption": f"caption {place}\n"} for place in range(2)
        ]
    return document


def save(root: Path, name: str, document: Any) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(document))


@pytest.fixture
def coco(tmp_path: Path, write_picture) -> Path:
    save(tmp_path, "captions_train2017.json", coco_file(tmp_path, "train", [9, 25], write_picture))
    save(tmp_path, "captions_val2017.json", coco_file(tmp_path, "val", [139], write_picture))
    return tmp_path


def test_coco_ids_are_strings_and_val_is_dev(coco: Path) -> None:
    report = InputReport()
    records = import_coco(coco, report=report)
    report.raise_if_refused()
    assert [(record.image_id, record.split, record.captions) for record in records] == [
        ("9", "train", ("caption 0", "caption 1")), ("25", "train", ("caption 0", "caption 1")),
        ("139", "dev", ("caption 0", "caption 1")),
    ]  # fmt: skip
    assert [record.image_id for record in import_coco(coco, splits={"dev"}, report=report)] == ["139"]


def test_only_the_asked_coco_split_must_be_there(coco: Path) -> None:
    (coco / "annotations" / "captions_train2017.json").unlink()
    for path in (coco / "train2017").iterdir():
        path.unlink()
    assert len(import_coco(coco, splits={"dev"}, report=InputReport())) == 1
    with pytest.raises(DataError, match=r"split test.*found: captions_val2017\.json"):
        import_coco(coco, splits={"test"}, report=InputReport())


def test_two_years_are_refused(coco: Path) -> None:
    save(coco, "captions_val2014.json", {})
    with pytest.raises(DataError, match=r"captions_val2014\.json and captions_val2017\.json"):
        import_coco(coco, report=InputReport())


COCO_FAULTS = {
    "image_missing": lambda d: d["images"].append({"id": 7, "file_name": "gone.jpg"}),
    "line_malformed": lambda d: d["images"].append({"file_name": "x.jpg"}),
    "duplicate_id": lambda d: d["images"].append(d["images"][0]),
    "caption_without_image": lambda d: d["annotations"].append({"id": 1, "image_id": 8, "caption": "x"}),
    "caption_empty": lambda d: d["annotations"].append({"id": 1, "image_id": 139, "caption": ""}),
    "image_in_two_splits": lambda d: d["images"].append({"id": 9, "file_name": "000000000139.jpg"}),
}


@pytest.mark.parametrize("kind", COCO_FAULTS)
def test_coco_faults_are_named_and_skipped_when_allowed(coco: Path, kind: str) -> None:
    path = coco / "annotations" / "captions_val2017.json"
    document = json.loads(path.read_text())
    COCO_FAULTS[kind](document)
    path.write_text(json.dumps(document))
    strict, lenient = InputReport(), InputReport([kind])
    import_coco(coco, report=strict)
    with pytest.raises(DataError, match=rf"1 {kind} \[captions_val2017\.json: (images|annotations)\["):
        strict.raise_if_refused()
    records = import_coco(coco, report=lenient)
    lenient.raise_if_refused()
    assert {record.image_id for record in records} == {"9", "25", "139"}
    assert lenient.count(kind) == 1


def test_a_coco_image_in_a_split_that_was_not_asked_for(coco: Path) -> None:
    path = coco / "annotations" / "captions_val2017.json"
    document = json.loads(path.read_text())
    document["images"] += [{"id": 9, "file_name": "000000000139.jpg"}, {"id": 5}, {"id": 139, "file_name": "x.jpg"}]
    path.write_text(json.dumps(document))
    for picture in (coco / "val2017").iterdir():
        picture.unlink()
    report, lenient = InputReport(), InputReport("all")
    import_coco(coco, splits={"train"}, report=report)
    assert [fault.kind for fault in report.faults] == ["image_in_two_splits"]
    assert {note.kind for note in report.notes} == {"line_malformed", "duplicate_id"}  # of val, and no photograph
    assert [record.image_id for record in import_coco(coco, splits={"train"}, report=lenient)] == ["25"]


def test_coco_files_of_other_splits_that_cannot_be_read_are_noted(coco: Path) -> None:
    (coco / "annotations" / "captions_val2017.json").write_text("{")
    report = InputReport()
    assert len(import_coco(coco, splits={"train"}, report=report)) == 2
    report.raise_if_refused()
    assert [note.where for note in report.notes] == ["captions_val2017.json"]
    with pytest.raises(DataError, match="is no JSON"):
        import_coco(coco, splits={"dev"}, report=report)


def test_coco_ids_that_come_twice(coco: Path) -> None:
    path = coco / "annotations" / "captions_val2017.json"
    document = json.loads(path.read_text())
    first = document["annotations"][0]
    document["annotations"] += [first, {**first, "id": 77}, {**first, "id": None}, {**first, "id": None}]
    path.write_text(json.dumps(document))
    report = InputReport()
    records = import_coco(coco, splits={"dev"}, report=report)
    assert [(fault.kind, fault.where) for fault in report.faults] == [
        ("duplicate_id", "captions_val2017.json: annotations[2]")
    ]
    # another id, another person; without one nobody knows
    assert records[0].captions == ("caption 0", "caption 1", "caption 0", "caption 0", "caption 0")


def test_documents_that_are_no_coco(coco: Path) -> None:
    save(coco, "captions_val2017.json", {"images": []})
    with pytest.raises(DataError, match="no list 'annotations'"):
        import_coco(coco, report=InputReport())


@pytest.fixture
def karpathy(tmp_path: Path, write_picture) -> Path:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        write_picture(tmp_path / "val2014" / f"{number}.jpg")
        sentences = [{"raw": f"Caption {place} .", "tokens": ["caption"]} for place in range(2)]
        images.append(
            {
                "filename": f"{number}.jpg",
                "filepath": "val2014",
                "cocoid": 500 + number,
                "split": split,
                "sentences": sentences,
            }
        )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return tmp_path


def test_restval_belongs_to_train(karpathy: Path) -> None:
    report = InputReport()
    records = import_karpathy(karpathy, report=report)
    report.raise_if_refused()
    assert [(record.image_id, record.split) for record in records] == [
        ("500", "train"), ("501", "train"), ("502", "dev"), ("503", "test"),
    ]  # fmt: skip
    assert records[0].captions == ("Caption 0 .", "Caption 1 .")


def test_only_the_asked_karpathy_split_must_be_there(karpathy: Path) -> None:
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (karpathy / "val2014" / name).unlink()
    report = InputReport()
    assert [record.image_id for record in import_karpathy(karpathy, splits={"test"}, report=report)] == ["503"]
    report.raise_if_refused()


def test_flickr_files_have_names_for_ids(karpathy: Path, write_picture) -> None:
    (karpathy / "dataset_coco.json").unlink()
    write_picture(karpathy / "images" / "a.jpg")
    image = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "A dog ."}], "cocoid": None}
    (karpathy / "dataset_flickr8k.json").write_text(json.dumps({"images": [image]}))
    record = import_karpathy(karpathy, report=InputReport())[0]
    assert (record.image_id, record.path) == ("a.jpg", str(karpathy / "images" / "a.jpg"))


KARPATHY_FAULTS: dict[str, dict[str, Any]] = {
    "image_missing": {"filename": "gone.jpg", "cocoid": 1},
    "unknown_split": {"split": "extra"},
    "line_malformed": {"filename": "../x.jpg"},
    "duplicate_id": {},
    "image_in_two_splits": {"split": "train"},
    "caption_empty": {"filename": "0.jpg", "cocoid": 1, "sentences": [{"raw": " ."}]},
}


@pytest.mark.parametrize("kind", KARPATHY_FAULTS)
def test_karpathy_faults_are_named_and_skipped_when_allowed(karpathy: Path, kind: str) -> None:
    path = karpathy / "dataset_coco.json"
    document = json.loads(path.read_text())
    document["images"].append({**document["images"][-1], **KARPATHY_FAULTS[kind]})
    path.write_text(json.dumps(document))
    strict, lenient = InputReport(), InputReport([kind])
    import_karpathy(karpathy, report=strict)
    with pytest.raises(DataError, match=rf"1 {kind} \[dataset_coco\.json: images\[4\]"):
        strict.raise_if_refused()
    splits = {record.image_id: record.split for record in import_karpathy(karpathy, report=lenient)}
    lenient.raise_if_refused()
    assert splits["503"] == "test"
    assert len(splits) == (5 if kind == "caption_empty" else 4)


def test_karpathy_faults_of_other_splits_are_counted(karpathy: Path) -> None:
    path = karpathy / "dataset_coco.json"
    document = json.loads(path.read_text())
    train = document["images"][0]
    document["images"] += [train, {**train, "cocoid": 1, "sentences": None}, {**train, "cocoid": 502}]
    path.write_text(json.dumps(document))
    report = InputReport()
    assert [record.image_id for record in import_karpathy(karpathy, splits={"test"}, report=report)] == ["503"]
    report.raise_if_refused()
    for kind in ("duplicate_id", "line_malformed", "image_in_two_splits"):
        assert report.count(kind) == 1
    import_karpathy(karpathy, splits={"dev"}, report=report)
    assert [fault.kind for fault in report.faults] == ["image_in_two_splits"]


def test_a_split_that_is_no_name_is_unknown(karpathy: Path) -> None:
    path = karpathy / "dataset_coco.json"
    document = json.loads(path.read_text())
    document["images"][0]["split"] = ["train"]
    path.write_text(json.dumps(document))
    import_karpathy(karpathy, splits={"test"}, report=(report := InputReport()))
    assert [fault.kind for fault in report.faults] == ["unknown_split"]


def test_karpathy_files_that_cannot_be_used(karpathy: Path, tmp_path: Path) -> None:
    (karpathy / "dataset_flickr8k.json").write_text("{}")
    with pytest.raises(DataError, match="several split files"):
        import_karpathy(karpathy, report=InputReport())
    (karpathy / "dataset_coco.json").unlink()
    with pytest.raises(DataError, match="no list 'images'"):
        import_karpathy(karpathy, report=InputReport())
    (karpathy / "dataset_flickr8k.json").unlink()
    with pytest.raises(DataError, match=r"no dataset_\*\.json"):
        import_karpathy(karpathy, report=InputReport())
