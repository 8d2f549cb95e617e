"""Which files are meant, and that opening them ahead keeps order, bounds and errors."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from PIL import Image

from raycap.data.images import MAX_PIXELS, ImageBroken, ImageMissing
from raycap.errors import DataError
from raycap.evaluate import pictures
from raycap.evaluate.pictures import coco_file_names, find_pictures, picture_batches, pictures_by_id


def picture(path: Path, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "sub/deep/d.gif", ".hidden.png", ".git/x.png", "__MACOSX/y.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    given = [tmp_path / "notes.txt", tmp_path, tmp_path / "gone.jpg", tmp_path / "b.PNG"]
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures(given)]
    assert found == ["notes.txt", "a.jpg", "b.PNG", "sub/c.webp", "sub/deep/d.gif", "gone.jpg", "b.PNG"]


def test_no_picture_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture is in these folders"):
        find_pictures([tmp_path])
    assert find_pictures([tmp_path / "gone.png"]) == [tmp_path / "gone.png"]


def test_batches_keep_the_order_and_carry_the_errors(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{number}.png", (number + 1, 1)) for number in range(7)]
    paths[2].unlink()
    paths[5].write_bytes(b"no picture")
    batches = list(picture_batches(paths, batch_size=3, max_pixels=MAX_PIXELS))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    opened = [one for batch in batches for one in batch]
    assert [(one.index, one.path) for one in opened] == list(enumerate(paths))
    assert [one.picture.width if one.picture else None for one in opened] == [1, 2, None, 4, 5, None, 7]
    assert [type(one.error) for one in opened if one.picture is None] == [ImageMissing, ImageBroken]
    assert list(picture_batches([], batch_size=3, max_pixels=1)) == []


def test_a_batch_is_bounded_by_pixels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    paths = [
        picture(tmp_path / f"{number}.png", size) for number, size in enumerate([(8, 8), (8, 8), (20, 10), (3, 3)])
    ]
    batches = picture_batches(paths, batch_size=10, max_pixels=MAX_PIXELS)
    assert [[one.index for one in batch] for batch in batches] == [[0, 1], [2], [3]]


def test_few_are_opened_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, lock = [], threading.Lock()

    def open_slowly(path: Path, *, max_pixels: int) -> Image.Image:
        with lock:
            started.append(path)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(pictures, "open_image", open_slowly)
    batches = picture_batches([Path(str(number)) for number in range(100)], batch_size=2, max_pixels=1, threads=2)
    next(batches)
    assert len(started) <= 6
    assert len([one for batch in batches for one in batch]) == 98


def test_an_error_that_is_not_the_pictures_fault_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *, max_pixels: int) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(pictures, "open_image", broken)
    with pytest.raises(MemoryError):
        list(picture_batches([Path("a")], batch_size=1, max_pixels=1))


def test_an_id_is_a_path_a_name_or_a_stem(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "1.png"), picture(tmp_path / "sub" / "x.jpg")
    for image_id, path in {"1": one, "1.png": one, "x": two, "x.jpg": two, "sub/x.jpg": two, "sub/x": two}.items():
        assert pictures_by_id([image_id], tmp_path) == {image_id: path}
    assert pictures_by_id(["42"], tmp_path, {"42": "x.jpg"}) == {"42": two}
    with pytest.raises(DataError, match=r"1 image id\(s\) have no picture"):
        pictures_by_id(["1", "9"], tmp_path)
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match="2 pictures answer to it"):
        pictures_by_id(["x"], tmp_path)
    assert pictures_by_id(["x.png"], tmp_path) == {"x.png": tmp_path / "x.png"}
    with pytest.raises(DataError, match="no such folder"):
        pictures_by_id(["1"], tmp_path / "gone")


def test_a_file_name_with_a_folder_in_front_is_found_in_that_folder(tmp_path: Path) -> None:
    """COCO's annotations say "train2014/x.jpg" where the pictures are asked for in train2014."""
    one = picture(tmp_path / "train2014" / "x.jpg")
    assert pictures_by_id(["42"], tmp_path / "train2014", {"42": "train2014/x.jpg"}) == {"42": one}
    two = picture(tmp_path / "val2014" / "x.jpg")
    both = {"1": "train2014/x.jpg", "2": "val2014/x.jpg"}
    assert pictures_by_id(["1", "2"], tmp_path, both) == {"1": one, "2": two}
    with pytest.raises(DataError, match=r"train2014/x.jpg and val2014/x.jpg are one picture"):
        pictures_by_id(["1", "2"], tmp_path / "val2014", both)
    with pytest.raises(DataError, match="2 pictures answer to it"):
        pictures_by_id(["1"], tmp_path, {"1": "elsewhere/x.jpg"})
    with pytest.raises(DataError, match=r"1 image id\(s\) have no picture"):  # an id is no file name
        pictures_by_id(["elsewhere/x"], tmp_path / "train2014")


def test_no_picture_stands_in_for_another_one(tmp_path: Path) -> None:
    picture(tmp_path / "cam1" / "0001.jpg")
    (tmp_path / "cam2").mkdir()  # the folder is there, its picture is not
    with pytest.raises(DataError, match=r"1 image id\(s\) have no picture.*cam2|images = \['2'\]"):
        pictures_by_id(["1", "2"], tmp_path, {"1": "cam1/0001.jpg", "2": "cam2/0001.jpg"})
    with pytest.raises(DataError, match=r"0001.jpg and train2014/0001.jpg are one picture"):
        pictures_by_id(["1", "2"], tmp_path, {"1": "0001.jpg", "2": "train2014/0001.jpg"})
    one = tmp_path / "cam1" / "0001.jpg"
    assert pictures_by_id(["1", "2"], tmp_path, {"1": "0001.jpg", "2": "0001.jpg"}) == {"1": one, "2": one}


def test_file_names_of_annotations(tmp_path: Path) -> None:
    file = tmp_path / "refs.json"
    file.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}, {"id": 8}], "annotations": []}))
    assert coco_file_names(file) == {"7": "a.png"}
    for other in ('{"7": ["a"]}', '{"image_id": 1, "references": []}\n{"image_id": 2, "references": []}', "[]"):
        file.write_text(other)
        assert coco_file_names(file) == {}
