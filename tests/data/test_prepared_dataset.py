from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raycap.data.dataset import PreparedDataset
from raycap.data.schema import ImageRecord, build_tables, read_tables, write_tables
from raycap.errors import DataError

RECORDS = [
    ImageRecord("0012", "/photos/0012.jpg", "train", ("a dog", "a brown dog"), 8, 6, "aa"),
    ImageRecord("0003", None, "train", (), 0, 0, ""),
    ImageRecord("b/é.jpg", "images/é.jpg", "dev", ("a cat",), 5, 5, "bb"),
    ImageRecord("w1", "/photos/w1.jpg", "train", ("a web image",), 8, 6, "cc"),
    ImageRecord("s1", "/photos/s1.jpg", "train", ("a select image",), 8, 6, "dd"),
]
PARTS = {"0012": "pool", "0003": "pool", "w1": "web", "s1": "select"}


def written(folder: Path, records: list[ImageRecord] = RECORDS, parts: dict[str, str] = PARTS) -> PreparedDataset:
    write_tables(folder, build_tables(records, parts, {"seed": 7}))
    return PreparedDataset.open(folder)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    assert dataset.ids("train") == ["0003", "0012", "s1", "w1"]
    assert dataset.ids("dev") == ["b/é.jpg"]
    assert dataset.ids("test") == []
    assert dataset.references("0012") == ("a dog", "a brown dog")
    assert dataset.references("0003") == ()
    assert dataset.path("0012") == Path("/photos/0012.jpg")
    assert dataset.path("b/é.jpg") == tmp_path / "images/é.jpg"
    assert dataset.size("0012") == (8, 6)
    assert dataset.seed == 7
    assert len(dataset) == 5
    assert "0012" in dataset
    assert 12 not in dataset  # type: ignore[comparison-overlap]
    assert dataset.records("dev")[0].captions == ("a cat",)


def test_parts_say_who_may_see_which_captions(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    assert dataset.ids("train", "web") == ["w1"]
    assert dataset.captioner_ids() == ["0003", "0012"]
    assert dataset.labelled_ids() == ["0012"]
    assert dataset.clip_ids() == ["w1"]
    assert dataset.select_ids() == ["s1"]
    assert dataset.select_ids(num_labeled=0) == []
    uncut = written(tmp_path / "uncut", parts={"s1": "select"})
    assert uncut.clip_ids() == ["0012", "w1"]


def test_ids_in_parquet_are_strings_and_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    written(tmp_path)
    tables = {name: pq.read_table(tmp_path / f"{name}.parquet") for name in ("images", "captions", "splits")}
    assert tables["images"].column_names == ["image_id", "path", "width", "height", "digest"]
    assert tables["captions"].column_names == ["image_id", "caption_id", "caption"]
    assert tables["splits"].column_names == ["image_id", "split", "part"]
    assert tables["images"]["image_id"].to_pylist()[:2] == ["0003", "0012"]
    assert tables["captions"]["caption_id"].to_pylist()[:2] == ["0012#0", "0012#1"]


def test_the_fingerprint_is_of_content_not_of_place_or_order(tmp_path: Path) -> None:
    first = written(tmp_path / "one").fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert PreparedDataset.open(tmp_path / "two").fingerprint == first
    assert written(tmp_path / "three", RECORDS[::-1]).fingerprint == first
    moved = [ImageRecord(**{**vars(record), "path": "/elsewhere"}) for record in RECORDS]
    assert written(tmp_path / "four", moved).fingerprint == first


@pytest.mark.parametrize("change", [{"captions": ("a dog",)}, {"split": "dev"}, {"width": 9}, {"digest": "ab"}])
def test_the_fingerprint_sees_every_change(tmp_path: Path, change: dict[str, object]) -> None:
    changed = [ImageRecord(**{**vars(RECORDS[0]), **change}), *RECORDS[1:]]  # type: ignore[arg-type]
    assert written(tmp_path / "one").fingerprint != written(tmp_path / "two", changed).fingerprint


def test_the_fingerprint_sees_parts_and_caption_borders(tmp_path: Path) -> None:
    before = written(tmp_path / "one").fingerprint
    assert written(tmp_path / "two", parts={**PARTS, "w1": "pool"}).fingerprint != before
    joined = [ImageRecord("0012", "x", "train", ("a dog a brown dog",), 8, 6, "aa"), *RECORDS[1:]]
    assert written(tmp_path / "three", joined).fingerprint != before


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished data set"):
        PreparedDataset.open(tmp_path)
    written(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="run the stage prepare"):
        PreparedDataset.open(tmp_path)


def test_writing_that_stops_half_way_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    tables = read_tables(tmp_path)
    real = pq.write_table

    def fail(table, where, **options):
        if "captions" in str(where):
            raise OSError("disk full")
        real(table, where, **options)

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tables(tmp_path, tables)
    with pytest.raises(DataError, match="no finished data set"):
        PreparedDataset.open(tmp_path)


def test_damage_and_other_versions_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99, expected 1"):
        PreparedDataset.open(tmp_path)
    written(tmp_path)
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged"):
        PreparedDataset.open(tmp_path)
    written(tmp_path)
    other = build_tables(RECORDS[:2], {}, {})
    pq.write_table(other.splits, tmp_path / "splits.parquet")
    with pytest.raises(DataError, match="do not name the same images"):
        PreparedDataset.open(tmp_path)


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    with pytest.raises(DataError, match="split = 'val'"):
        dataset.ids("val")
    with pytest.raises(DataError, match="part = 'pol'"):
        dataset.ids("train", "pol")
    with pytest.raises(DataError, match="image_id = '12'"):
        dataset.references("12")
    with pytest.raises(DataError, match="no photograph"):
        dataset.path("0003")
    with pytest.raises(DataError, match="split = 'val'"):
        ImageRecord("a", None, "val")
    with pytest.raises(DataError, match="non-empty string"):
        ImageRecord(12, None, "dev")  # type: ignore[arg-type]
