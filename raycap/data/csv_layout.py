"""Importer of the CSV layout in which Flickr8k travels on Kaggle: `image,caption` rows beside a folder of photographs.

    captions.txt or captions.csv     header `image,caption`, optional split; captions with commas are quoted
    Images/ (or images/, Flicker8k_Dataset/)
    Flickr_8k.{train,dev,test}Images.txt    optional

Splits are those of the lists, or of the column `split` (both are refused). With lists, an image that none of them names
is left out and its captions are counted (caption_without_image); without, one whose rows give no split is put into one
by its hash. Ids are file names. Only the photographs of the asked splits need to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from raycap.data.flickr8k import SPLIT_LIST, find_image_folder, join_captions, note_other_captions
from raycap.data.images import SUFFIXES, is_picture_name
from raycap.data.input_report import InputReport
from raycap.data.row_splits import RowSplits
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import Listed, check_splits, find_split_lists, read_split_lists, split_name
from raycap.data.subsets import check_shares, split_by_hash
from raycap.data.tables import csv_columns, note_unread_columns, read_csv
from raycap.data.text import clean_captions
from raycap.errors import DataError

TABLES = ("captions.txt", "captions.csv")

_Captions = dict[str, list[tuple[str, str]]]
"""{image name: its (text, where)}"""


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
        seed, shares: of the split by hash (see `subsets.split_by_hash`), where no list is there and no row names one.

    Raises:
        DataError: no table, two of them, no folder of photographs, no columns `image` and `caption`, lists beside a
            column of splits, or an asked list is missing where others are there.
    """
    check_splits(splits)
    check_shares(shares)
    table = find_table(root)
    folder = find_image_folder(root)
    note_unread_columns(table, csv_columns(table), ("image", "caption", "split"), report)
    if find_split_lists(root, SPLIT_LIST, None):
        listed, captions = _by_lists(root, table, splits, report)
    else:
        listed, captions = _by_rows(table, splits, lambda name: split_by_hash(name, seed, shares), report)
    cleaned, others = {}, Counter[str]()
    for name, rows in captions.items():
        if name not in listed:
            others[name] = len(rows)
        elif kept := clean_captions(name, rows, report):
            cleaned[name] = kept
    note_other_captions(others, report, table.name)
    for unnamed in sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        if unnamed not in captions and unnamed not in listed:
            report.note("image_not_listed", unnamed, f"no row of {table.name} names it: left out")
    return join_captions(listed, cleaned, folder, report)


def find_table(root: Path) -> Path:
    """The table of captions; raises DataError with what was looked for, or where there are two."""
    found = _tables(root)
    if not found:
        what = f"no table with the columns image and caption is there (looked for {' and '.join(TABLES)})"
        raise DataError(what, key="data.root", value=str(root), remedy="put it there, with the header image,caption")
    if len(found) > 1:
        what = f"two tables could hold the captions: {' and '.join(path.name for path in found)}"
        raise DataError(what, key="data.root", value=str(root), remedy="keep one")
    return found[0]


def has_table(root: Path) -> bool:
    """Whether there is a table of captions with the right header, in which this importer finds its way."""
    return bool(_tables(root))


def is_csv_layout(root: Path) -> bool:
    """Whether this is the layout: a table of just image and caption, whose images are plain names.

    A table with a split column or with paths in it is a user's own folder.
    """
    tables = _tables(root)
    if not tables or set(csv_columns(tables[0])) != {"image", "caption"}:
        return False
    first = next(read_csv(tables[0], InputReport("all")), None)
    return first is not None and _is_plain(first[1]["image"])


def _tables(root: Path) -> list[Path]:
    found = [root / name for name in TABLES if (root / name).is_file()]
    return [path for path in found if {"image", "caption"} <= set(csv_columns(path))]


def _is_plain(name: str) -> bool:
    return "/" not in name and "\\" not in name


def _by_lists(
    root: Path, table: Path, splits: set[str] | None, report: InputReport
) -> tuple[dict[str, Listed], _Captions]:
    if "split" in csv_columns(table):
        what = f"{table.name} has a column split, and split lists are there as well"
        raise DataError(what, key="data.root", value=str(root), remedy="keep one of them")
    listed = read_split_lists(find_split_lists(root, SPLIT_LIST, splits), report, splits)
    return listed, _read_table(table, report, lambda name: name in listed or not is_picture_name(name))


def _by_rows(
    table: Path, splits: set[str] | None, by_hash: Callable[[str], str], report: InputReport
) -> tuple[dict[str, Listed], _Captions]:
    rows = read_csv(table, InputReport("all"))
    row_splits = RowSplits([(row["image"], split_name(row.get("split", ""))) for _, row in rows], splits, by_hash)
    captions = _read_table(table, report, row_splits.damaged_is_asked, row_splits)
    first_lines = {name: rows[0][1] for name, rows in captions.items()}
    listed = {name: Listed(row_splits.of(name), where) for name, where in first_lines.items() if row_splits.asked(name)}
    return listed, captions


def _read_table(
    path: Path, report: InputReport, damaged_is_asked: Callable[[str], bool], row_splits: RowSplits | None = None
) -> _Captions:
    """The rows of every split; `damaged_is_asked(image name)` tells whether a damaged one is of an asked split."""
    captions: _Captions = {}
    for where, row in read_csv(path, report, asked=lambda fields: damaged_is_asked(fields.get("image", ""))):
        name, split = row["image"], split_name(row.get("split", ""))
        if not name or not _is_plain(name):
            asked = damaged_is_asked(name)
            report.add("line_malformed", where, f"{name!r} is not the name of a photograph", asked=asked)
        elif row_splits is None or row_splits.check(name, split, where, report):
            captions.setdefault(name, []).append((row["caption"], where))
    return captions
