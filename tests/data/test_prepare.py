from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from raycap.data import images as images_module
from raycap.data.dataset import PreparedDataset
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.schema import ImageRecord
from raycap.errors import DataError


@pytest.fixture
def records(tmp_path: Path, write_picture) -> list[ImageRecord]:
    made = []
    for number in range(40):
        name = f"{number:03d}.png"
        split = "train" if number < 30 else "dev" if number < 35 else "test"
        path = write_picture(tmp_path / "photos" / name, (8, 6), (number, 2, 3))
        captions = () if 20 <= number < 30 else (f"picture {number}", f"the picture number {number}")
        made.append(ImageRecord(name, str(path), split, captions))
    return made


def test_cuts_do_not_overlap_and_lose_nothing(records: list[ImageRecord], tmp_path: Path) -> None:
    dataset = prepare(records, tmp_path / "out", web_share=0.5, seed=1)
    parts = {part: set(dataset.ids("train", part)) for part in ("", "select", "web", "pool")}
    assert [len(parts[part]) for part in ("", "select", "web", "pool")] == [0, 2, 14, 14]
    assert set.union(*parts.values()) == set(dataset.ids("train"))
    assert all(dataset.references(image_id) for image_id in parts["select"])
    assert dataset.size("000.png") == (8, 6)
    assert dataset.manifest["counts"]["train"] == {"images": 30, "captions": 40, "unlabelled": 10}
    assert dataset.manifest["counts"]["train/select"]["images"] == 2


def test_labelled_subsets_are_nested_and_leave_select_alone(records: list[ImageRecord], tmp_path: Path) -> None:
    dataset = prepare(records, tmp_path / "out", select_size=4)
    subsets = [set(dataset.labelled_ids(num_labeled=size)) for size in (3, 8, 16)]
    assert subsets[0] < subsets[1] < subsets[2] == set(dataset.labelled_ids())
    assert not subsets[2] & set(dataset.ids("train", "select"))
    assert set(dataset.select_ids(num_labeled=2)) < set(dataset.select_ids())


def test_select_is_limited_in_few_label_runs(records: list[ImageRecord], tmp_path: Path) -> None:
    assert len(prepare(records, tmp_path / "out", select_size=9, num_labeled=3).ids("train", "select")) == 3


def test_the_order_of_input_does_not_matter_and_a_second_run_touches_nothing(
    records: list[ImageRecord], tmp_path: Path
) -> None:
    first = prepare(records, tmp_path / "out", web_share=0.3)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    again = prepare(records[::-1], tmp_path / "out", web_share=0.3)
    assert again.fingerprint == first.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")} == before
    assert prepare(records, tmp_path / "out", web_share=0.3, seed=5).fingerprint != first.fingerprint


def test_an_interrupted_check_goes_on_where_it_was(
    records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(records[:25], tmp_path / "out")
    (tmp_path / "out" / "dataset.json").unlink()
    with (tmp_path / "out" / ".checked.jsonl").open("a") as file:
        file.write('["half a li')
    opened: list[str] = []
    real = images_module.open_image

    def open_and_tell(path: Path, **options: int) -> Image.Image:
        opened.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(images_module, "open_image", open_and_tell)
    Image.new("RGB", (9, 9)).save(records[3].path or "")
    dataset = prepare(records, tmp_path / "out")
    assert sorted(opened) == ["003.png", *(f"{number:03d}.png" for number in range(25, 40))]
    assert dataset.size("003.png") == (9, 9)
    opened.clear()
    prepare(records, tmp_path / "out")
    assert opened == []


def test_pictures_inside_the_folder_are_stored_relative_so_it_can_move(tmp_path: Path, write_picture) -> None:
    write_picture(tmp_path / "out" / "images" / "a.png")
    prepare([ImageRecord("a", str(tmp_path / "out" / "images" / "a.png"), "test", ("a caption",))], tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert PreparedDataset.open(tmp_path / "moved").path("a") == tmp_path / "moved" / "images" / "a.png"


def bad_records(records: list[ImageRecord], tmp_path: Path) -> list[ImageRecord]:
    """Every fault that only prepare can see, one each."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    return [
        *records,
        ImageRecord("broken", str(tmp_path / "broken.jpg"), "train", ("a",)),
        ImageRecord("large", str(tmp_path / "large.png"), "train", ("a",)),
        ImageRecord("gone", str(tmp_path / "gone.png"), "dev", ("a",)),
        ImageRecord("000.png", str(tmp_path / "other.png"), "train", ("the id again",)),
        ImageRecord("001.png", records[1].path, "test", ("in test as well",)),
        ImageRecord("other id", records[2].path, "dev", ("the same file in dev",)),
    ]


KINDS = ("image_broken", "image_too_large", "image_missing", "duplicate_id", "image_in_two_splits")


def test_all_faults_are_refused_together(records: list[ImageRecord], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(bad_records(records, tmp_path), tmp_path / "out", max_pixels=5000)
    message = str(caught.value)
    for kind in KINDS:
        assert kind in message
    assert "2 image_in_two_splits" in message
    assert "300 x 300 pixels" in message
    assert not (tmp_path / "out" / "dataset.json").exists()
    listed = json.loads((tmp_path / "out" / "report.json").read_text())["refused"]
    assert len(listed["items"]) == sum(listed["counts"].values()) == 6


def test_allowed_faults_are_skipped_counted_and_listed(records: list[ImageRecord], tmp_path: Path) -> None:
    report = InputReport(KINDS)
    dataset = prepare(bad_records(records, tmp_path), tmp_path / "out", report=report, max_pixels=5000)
    assert len(dataset) == 40
    assert "001.png" in dataset.ids("test")
    assert "002.png" in dataset.ids("dev")
    assert dataset.references("000.png") == records[0].captions
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["skipped"]["counts"] == {
        "duplicate_id": 1, "image_in_two_splits": 2, "image_broken": 1, "image_too_large": 1, "image_missing": 1,
    }  # fmt: skip
    assert "skipped 1 duplicate_id" in dataset.manifest["report"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_must_be_allowed(kind: str, records: list[ImageRecord], tmp_path: Path) -> None:
    others = InputReport(set(KINDS) - {kind})
    with pytest.raises(DataError, match=kind):
        prepare(bad_records(records, tmp_path), tmp_path / "out", report=others, max_pixels=5000)


def test_the_importers_faults_are_refused_with_those_of_prepare(records: list[ImageRecord], tmp_path: Path) -> None:
    report = InputReport()
    report.add("line_malformed", "captions.txt:3", "no tab")
    (tmp_path / "photos" / "000.png").unlink()
    with pytest.raises(DataError, match=r"line_malformed \[captions.txt:3.*image_missing"):
        prepare(records, tmp_path / "out", report=report)


def test_the_same_picture_under_two_ids_is_noted(records: list[ImageRecord], tmp_path: Path) -> None:
    twin = tmp_path / "twin.png"
    twin.write_bytes((tmp_path / "photos" / "000.png").read_bytes())
    report = InputReport()
    dataset = prepare([*records, ImageRecord("twin", str(twin), "test")], tmp_path / "out", report=report)
    assert len(dataset) == 41
    assert [str(note) for note in report.notes] == ["twin: test: the same picture as 000.png in train"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image is left.*skipped 1 image_missing"):
        prepare([ImageRecord("a", "/gone.png", "test")], tmp_path, report=InputReport("all"))


def test_caption_only_records_need_no_photograph(tmp_path: Path) -> None:
    assert prepare([ImageRecord("a", None, "test", ("words",))], tmp_path).references("a") == ("words",)
