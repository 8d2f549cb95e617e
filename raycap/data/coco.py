"""Importer of COCO captions (2014 and 2017) and of data sets in that form.

    annotations/captions_{train,val}{2014,2017}.json     (captions_test*.json is read as well, for sets that have one)
    train2014/, val2017/ ... at the top or under images/; else images/ itself

`val` is our `dev`. Ids are COCO's image ids, as strings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import SPLIT_KEYS, Listed, check_splits, one_split
from raycap.data.tables import read_json
from raycap.data.text import clean_caption
from raycap.errors import DataError

_FILE = re.compile(r"captions_(?P<split>train|val|dev|test)(?P<year>[0-9]{4})?\.json")
_SPLITS = {"train": "train", "val": "dev", "dev": "dev", "test": "test"}


def import_coco(root: Path, *, splits: set[str] | None = None, report: InputReport) -> list[ImageRecord]:
    """Records of the asked splits (None: of all whose annotations are there), in the files' order.

    The files of other splits are read for images in two splits only; what else is wrong in them is noted.

    Raises:
        DataError: an asked split has no annotation file, two years are there, or a file is no COCO JSON.
    """
    check_splits(splits)
    found = find_annotations(root)
    for split in sorted((splits or set()) - found.keys()):
        what = (
            f"no captions of the split {split} are there (found: {', '.join(p.name for p in found.values()) or 'none'})"
        )
        raise DataError(
            what,
            key="data.root",
            value=str(root),
            remedy=f"put annotations/captions_{split}*.json there, or ask for other splits ({SPLIT_KEYS})",
        )
    records: dict[str, ImageRecord] = {}
    places: dict[str, Listed] = {}
    for split, path in found.items():
        asked = splits is None or split in splits
        try:
            document = read_json(path)
            images, annotations = (_list(document, key, path) for key in ("images", "annotations"))
        except DataError as error:
            if asked:
                raise
            report.note("line_malformed", path.name, f"not looked into for images in two splits: {error.what}")
            continue
        entries = _place(places, images, split, path.name, report, splits)
        if asked:
            _add_split(records, entries, annotations, split, path, root, report)
    # an image in two splits may have left an asked split after it was recorded
    return [record for record in records.values() if places[record.image_id].split == record.split]


def find_annotations(root: Path) -> dict[str, Path]:
    """{our split: annotation file}; raises DataError when two files hold the same split (two years)."""
    found: dict[str, Path] = {}
    for folder in (root / "annotations", root):
        for path in sorted(folder.glob("captions_*.json")):
            match = _FILE.fullmatch(path.name)
            if match is None:
                continue
            split = _SPLITS[match["split"]]
            if split in found:
                what = f"{found[split].name} and {path.name} both hold the split {split}"
                raise DataError(what, key="data.root", value=str(root), remedy="keep the files of one year")
            found[split] = path
    return {split: found[split] for split in ("train", "dev", "test") if split in found}


class _Entry(NamedTuple):
    where: str
    image_id: str
    name: str


def _place(
    places: dict[str, Listed], images: list[Any], split: str, file: str, report: InputReport, splits: set[str] | None
) -> list[_Entry]:
    """The entries of `images` that are images, each id once, and where each stands; files come train first."""
    asked = splits is None or split in splits
    entries = []
    for number, image in enumerate(images):
        where = f"{file}: images[{number}]"
        if not _is_entry(image, "id", "file_name"):
            detail = f"expected an object with id and file_name, found {str(image)[:80]}"
            report.add("line_malformed", where, detail, asked=asked)
            continue
        entry, here = _Entry(where, str(image["id"]), str(image["file_name"])), Listed(split, where)
        before = places.setdefault(entry.image_id, here)
        if before is not here and before.split == split:
            detail = f"the image id {entry.image_id} is there before, at {before.where}"
            report.add("duplicate_id", where, detail, asked=asked)
            continue
        if before is not here:
            places[entry.image_id] = one_split(entry.image_id, before, here, report, splits)
        entries.append(entry)
    return entries


def _add_split(
    records: dict[str, ImageRecord], entries: list[_Entry], annotations: list[Any], split: str, path: Path, root: Path,
    report: InputReport,
) -> None:  # fmt: skip
    captions = _captions(annotations, path.name, report)
    folder = _image_folder(root, path)
    present = {file.name for file in folder.iterdir()}
    for where, image_id, name in entries:
        texts = captions.pop(image_id, [])
        if name not in present:
            report.add("image_missing", where, f"{name} is not in {folder}")
            continue
        cleaned = tuple(caption for text, place in texts if (caption := clean_caption(text, place, report)))
        if not cleaned:
            report.note("image_without_caption", where, f"{image_id} has no caption")
        records[image_id] = ImageRecord(image_id, str(folder / name), split, cleaned)
    for image_id, texts in captions.items():
        report.add("caption_without_image", texts[0][1], f"image id {image_id} is not in images", len(texts))


def _captions(annotations: list[Any], file: str, report: InputReport) -> dict[str, list[tuple[Any, str]]]:
    """{image id: its (caption, where)}"""
    captions: dict[str, list[tuple[Any, str]]] = {}
    seen: set[str] = set()
    for number, annotation in enumerate(annotations):
        where = f"{file}: annotations[{number}]"
        if not _is_entry(annotation, "image_id", "caption"):
            report.add("line_malformed", where, f"expected image_id and caption, found {str(annotation)[:80]}")
            continue
        key = where if annotation.get("id") is None else str(annotation["id"])
        if key in seen:
            report.add("duplicate_id", where, f"the annotation id {key} is there before")
            continue
        seen.add(key)
        captions.setdefault(str(annotation["image_id"]), []).append((annotation["caption"], where))
    return captions


def _is_entry(entry: Any, *keys: str) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), (str, int)) for key in keys)


def _list(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(document.get(key), list):
        raise DataError(
            f"{path.name} has no list {key!r}", key="data.root", value=str(path), remedy="is it COCO captions?"
        )
    return list(document[key])


def _image_folder(root: Path, path: Path) -> Path:
    match = _FILE.fullmatch(path.name)
    name = f"{match['split']}{match['year'] or ''}" if match else ""
    looked = [root / name, root / "images" / name, root / "images"]
    for folder in looked:
        if folder.is_dir() and folder != root:
            return folder
    what = f"no folder of photographs for {path.name} (looked for {', '.join(str(folder) for folder in looked)})"
    raise DataError(what, key="data.root", value=str(root), remedy="put the photographs there")
