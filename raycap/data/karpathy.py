"""Importer of Karpathy's split files: `dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`.

Photographs lie in `filepath/filename` (COCO) or under `images/`. `val` is our `dev`; `restval` belongs to `train`. Ids
are COCO ids where the file has them (`cocoid`), else file names.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import Listed, check_splits, one_split
from raycap.data.tables import read_json
from raycap.data.text import clean_caption
from raycap.errors import DataError

_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset")


def import_karpathy(root: Path, *, splits: set[str] | None = None, report: InputReport) -> list[ImageRecord]:
    """Records of the asked splits (None: of all), in the file's order.

    Raises:
        DataError: no such file, several, or no `images` in it.
    """
    check_splits(splits)
    path = find_split_file(root)
    if path is None:
        raise DataError("no dataset_*.json is there", key="data.root", value=str(root), remedy="put it there")
    images = read_json(path).get("images")
    if not isinstance(images, list):
        raise DataError(
            f"{path.name} has no list 'images'", key="data.root", value=str(path), remedy="is it Karpathy's?"
        )
    records: dict[str, ImageRecord] = {}
    places: dict[str, Listed] = {}
    for number, image in enumerate(images):
        where = f"{path.name}: images[{number}]"
        fault = _fault(image)
        if fault:
            report.add(*fault[:1], where, fault[1], asked=_is_asked(image, splits))
            continue
        image_id = image["filename"] if image.get("cocoid") is None else str(image["cocoid"])
        here = Listed(_SPLITS[image["split"]], where)
        if image_id in places:
            if places[image_id].split == here.split:
                detail = f"{image_id} is there before, at {places[image_id].where}"
                report.add("duplicate_id", where, detail, asked=_is_asked(image, splits))
                continue
            here = one_split(image_id, places[image_id], here, report, splits)
        places[image_id] = here
        if here.where == where and (splits is None or here.split in splits):
            record = _record(root, image_id, image, here, report)
            records |= {image_id: record} if record else {}
    # an image in two splits may have left an asked split after it was recorded
    return [record for record in records.values() if places[record.image_id].split == record.split]


def find_split_file(root: Path) -> Path | None:
    """The split file at the top; None where there is none; raises DataError where there are several."""
    found = sorted(path for path in root.glob("dataset*.json") if path.name != "dataset.json")
    if len(found) > 1:
        what = f"several split files are there: {', '.join(path.name for path in found)}"
        raise DataError(what, key="data.root", value=str(root), remedy="keep one")
    return found[0] if found else None


def _is_asked(image: Any, splits: set[str] | None) -> bool:
    """Whether an entry is of an asked split; one that does not say its split counts as asked."""
    split = image.get("split") if isinstance(image, dict) else None
    return splits is None or not isinstance(split, str) or _SPLITS.get(split) in (None, *splits)


def _fault(image: Any) -> tuple[str, str] | None:
    if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
        return "line_malformed", f"expected an object with filename, found {str(image)[:80]}"
    if not isinstance(image.get("split"), str) or image["split"] not in _SPLITS:
        return "unknown_split", f"{image.get('split')!r} is not one of {', '.join(_SPLITS)}"
    place = PurePosixPath(str(image.get("filepath", "")), image["filename"])
    if place.is_absolute() or ".." in place.parts:
        return "line_malformed", f"{str(place)!r} is not a path inside the folder"
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(each, dict) for each in sentences):
        return "line_malformed", f"{image['filename']} has no list of sentences"
    return None


def _record(root: Path, image_id: str, image: dict[str, Any], here: Listed, report: InputReport) -> ImageRecord | None:
    photograph = _find(root, image)
    if photograph is None:
        report.add("image_missing", here.where, f"{image['filename']} is not in {root}")
        return None
    cleaned = [clean_caption(sentence.get("raw"), here.where, report) for sentence in image["sentences"]]
    captions = tuple(caption for caption in cleaned if caption)
    if not captions:
        report.note("image_without_caption", here.where, f"{image_id} has no caption")
    return ImageRecord(image_id, str(photograph), here.split, captions)


def _find(root: Path, image: dict[str, Any]) -> Path | None:
    inside = Path(str(image.get("filepath", ""))) / image["filename"]
    for candidate in [root / folder / name for folder in _FOLDERS for name in (inside, Path(image["filename"]))]:
        if candidate.is_file():
            return candidate
    return None
