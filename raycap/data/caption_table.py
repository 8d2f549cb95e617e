"""The caption table of a user's own folder: which file it is, and its rows, whatever its columns or keys are called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raycap.data.input_report import InputReport
from raycap.data.split_lists import split_name
from raycap.data.tables import csv_columns, note_unread_columns, read_csv, read_json_lines
from raycap.errors import DataError

IMAGE_COLUMNS = ("image", "image_id", "file", "file_name", "filename", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_BOTH = ("caption", "captions")  # as `raycap caption --num-captions` writes them: the first one, and all
_ENTRY = 'expected {"image": "path", "caption": "...", "split": "train"}'


class Row(NamedTuple):
    """One row of a table: the image as it is named there, the captions, the split ("" where none is given).

    `is_list`: the captions came as a list, all those of the image.
    """

    where: str
    image: str
    captions: list[Any]
    split: str
    is_list: bool = False


def find_table(root: Path) -> Path | None:
    """The caption table at the top of the folder, or None; raises DataError where there are several."""
    found = candidate_tables(root)
    if len(found) > 1:
        what = f"several tables could hold the captions: {', '.join(path.name for path in found)}"
        raise DataError(what, key="data.root", value=str(root), remedy="leave one, or call it captions.csv or .jsonl")
    return found[0] if found else None


def candidate_tables(root: Path) -> list[Path]:
    """The tables at the top that could be it: those that are called `captions`, or else all."""
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    tables += [path for path in [root / "captions.txt"] if path.is_file() and _column(csv_columns(path), IMAGE_COLUMNS)]
    return [path for path in tables if path.stem.lower() == "captions"] or tables


def holds_captions(table: Path) -> bool:
    """Whether it names images and captions by names that are known here."""
    if table.suffix.lower() != ".jsonl":
        columns = csv_columns(table)
        return bool(_column(columns, IMAGE_COLUMNS) and _column(columns, CAPTION_COLUMNS))
    entries = read_json_lines(table, InputReport("all"))
    return any(_given(entry, IMAGE_COLUMNS) and _given(entry, CAPTION_COLUMNS) for _, entry in entries)


def read_rows(
    table: Path, report: InputReport, damaged_is_asked: Callable[[object], bool] = lambda named: True
) -> Iterator[Row]:
    """The rows of a table.

    Args:
        damaged_is_asked: whether a damaged row is of an asked split, by the image that it names.
    """
    if table.suffix.lower() == ".jsonl":
        yield from _json_rows(table, report, damaged_is_asked)
        return
    columns = csv_columns(table)
    image, caption = _column(columns, IMAGE_COLUMNS), _column(columns, CAPTION_COLUMNS)
    if image is None:
        what = f"{table.name} has no image column (its header: {', '.join(columns) or 'empty'})"
        raise DataError(what, key="data.root", value=str(table), remedy="give it the header image,caption")
    _check_columns(table, columns, (image, caption, "split"), report)
    for where, row in read_csv(table, report, asked=lambda fields: damaged_is_asked(fields.get(image))):
        yield Row(where, row[image], [row[caption]] if caption else [], split_name(row.get("split", "")))


def _json_rows(table: Path, report: InputReport, damaged_is_asked: Callable[[object], bool]) -> Iterator[Row]:
    def asked(entry: dict[str, Any]) -> bool:
        return damaged_is_asked(_first_of(entry, IMAGE_COLUMNS))

    entries = list(read_json_lines(table, report, asked=asked))
    keys = list(dict.fromkeys(key for _, entry in entries for key in entry))
    _check_columns(table, keys, (*IMAGE_COLUMNS, *CAPTION_COLUMNS, "split"), report)
    _note_passed_over(entries, report)
    for where, entry in entries:
        named, split = _first_of(entry, IMAGE_COLUMNS), entry.get("split") or ""
        texts = _first_of(entry, CAPTION_COLUMNS)
        fault = "" if isinstance(named, str) and isinstance(split, str) else _ENTRY
        if _given(entry, CAPTION_COLUMNS)[:2] == list(_BOTH):
            one, texts = (entry[key] for key in _BOTH)
            if not isinstance(texts, list) or one not in texts:
                fault = fault or "its caption is not among its captions: keep one of the two"
        if fault:
            report.add("line_malformed", where, fault, asked=damaged_is_asked(named))
            continue
        listed = texts if isinstance(texts, list) else [] if texts is None else [texts]
        yield Row(where, named, listed, split_name(split), is_list=isinstance(texts, list))


def _check_columns(table: Path, columns: list[str], read: Collection[str | None], report: InputReport) -> None:
    """Notes columns that are not read; raises DataError where captions must be among them, under another name."""
    known = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, "split")
    if _column(columns, CAPTION_COLUMNS) is None and any(column and column not in known for column in columns):
        what = f"{table.name} has no caption column (its header: {', '.join(columns)})"
        remedy = "call it caption; where images have none, keep image and split only"
        raise DataError(what, key="data.root", value=str(table), remedy=remedy)
    note_unread_columns(table, columns, read, report)


def _note_passed_over(entries: Iterable[tuple[str, dict[str, Any]]], report: InputReport) -> None:
    """Notes keys whose value is not read where a line gives the image, or its captions, under two of the names."""
    places: dict[str, list[str]] = {}
    for where, entry in entries:
        for names in (IMAGE_COLUMNS, CAPTION_COLUMNS):
            for key in _given(entry, names)[1:]:
                if key != _BOTH[1]:  # that is the second one only beside `caption`, and they must agree
                    places.setdefault(key, []).append(where)
    for key, wheres in places.items():
        detail = f"not read: {key}, where another key comes first (lines: {len(wheres)})"
        report.note("unknown_column", wheres[0], detail)


def _given(entry: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """The keys that hold something: `null` is what tables of different rows are filled up with."""
    return [name for name in names if entry.get(name) not in (None, [])]


def _first_of(entry: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in _given(entry, names)), None)


def _column(columns: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)
