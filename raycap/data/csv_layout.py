"""Importer of the CSV layout in which Flickr8k travels on Kaggle: `image,caption` rows beside a folder of photographs.

    captions.txt or captions.csv     header `image,caption`; captions with commas are quoted
    Images/ (or images/, Flicker8k_Dataset/)
    Flickr_8k.{train,dev,test}Images.txt    optional; without them each image is put into a split by its hash

Ids are file names. Only the photographs of the asked splits need to be there; captions of other images are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from raycap.data.flickr8k import SPLIT_LIST, find_image_folder, join_captions, note_other_captions
from raycap.data.images import SUFFIXES
from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import Listed, check_splits, find_split_lists, read_split_lists
from raycap.data.subsets import check_shares, split_by_hash
from raycap.data.tables import csv_columns, read_csv
from raycap.data.text import clean_caption
from raycap.errors import DataError

TABLES = ("captions.txt", "captions.csv")


def import_csv(
    root: Path,
    *,
    splits: set[str] | None = None,
    report: InputReport,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> list[ImageRecord]:
    """Records of the asked splits (None: of all), in the order of the lists or of the table.

    Args:
        seed, shares: of the split by hash (see `subsets.split_by_hash`), used when no split list is there.

    Raises:
        DataError: no table, no folder of photographs, no columns `image` and `caption`, or an asked list is missing
            where others are there.
    """
    check_splits(splits)
    check_shares(shares)
    table = find_table(root)
    folder = find_image_folder(root)
    captions, first_lines = _read_table(table, report)
    if find_split_lists(root, SPLIT_LIST, None):
        listed = read_split_lists(find_split_lists(root, SPLIT_LIST, splits), report)
    else:
        placed = {name: Listed(split_by_hash(name, seed, shares), where) for name, where in first_lines.items()}
        listed = {name: place for name, place in placed.items() if splits is None or place.split in splits}
    cleaned, others = {}, Counter[str]()
    for name, rows in captions.items():
        if name not in listed:
            others[name] = len(rows)
        elif kept := [caption for text, where in rows if (caption := clean_caption(text, where, report))]:
            cleaned[name] = tuple(kept)
    note_other_captions(others, report, table.name)
    for unnamed in sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        if unnamed not in captions and unnamed not in listed:
            report.note("image_not_listed", unnamed, f"no row of {table.name} names it: left out")
    return join_captions(listed, cleaned, folder, report)


def find_table(root: Path) -> Path:
    """The table of captions; raises DataError with what was looked for."""
    found = has_table(root)
    if found is None:
        what = f"no table with the columns image and caption is there (looked for {' and '.join(TABLES)})"
        raise DataError(what, key="data.root", value=str(root), remedy="put it there, with the header image,caption")
    return found


def has_table(root: Path) -> Path | None:
    """The table of captions, if there is one with the right header."""
    for name in TABLES:
        if (root / name).is_file() and {"image", "caption"} <= set(csv_columns(root / name)):
            return root / name
    return None


def is_csv_layout(root: Path) -> bool:
    """Whether this is the layout: a table of just image and caption, whose images are plain names.

    A table with a split column or with paths in it is a user's own folder.
    """
    table = has_table(root)
    if table is None or set(csv_columns(table)) != {"image", "caption"}:
        return False
    first = next(read_csv(table, InputReport("all")), None)
    return first is not None and "/" not in first[1]["image"]


def _read_table(path: Path, report: InputReport) -> tuple[dict[str, list[tuple[str, str]]], dict[str, str]]:
    """{image name: its (text, where)} and {image name: where it is named first}."""
    captions: dict[str, list[tuple[str, str]]] = {}
    first: dict[str, str] = {}
    for where, row in read_csv(path, report):
        name = row["image"]
        if not name or "/" in name or "\\" in name:
            report.add("line_malformed", where, f"{name!r} is not the name of a photograph")
            continue
        first.setdefault(name, where)
        captions.setdefault(name, []).append((row["caption"], where))
    return captions, first
