"""Importer of a user's own folder: photographs, in sub-folders or not, with captions in one of three ways.

    captions.csv (or .tsv)   columns image (file, path ...), caption (text ...), optional split; a row a caption
    captions.jsonl           {"image": "a.jpg", "caption": "..."} or {"image": ..., "captions": [...], "split": "test"}
    a.txt beside a.jpg       each line a caption

The table may have another name when it is the only one at the top. Images without a caption come in unlabelled. An
image without a split is put into one by the hash of its file name: adding images never moves others. Ids are paths
relative to the folder, with forward slashes. What is wrong with rows of splits that are not asked for is only noted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from raycap.data.folders import walk
from raycap.data.images import SUFFIXES
from raycap.data.input_report import InputReport
from raycap.data.row_splits import RowSplits
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import check_splits, split_name
from raycap.data.subsets import check_shares, split_by_hash
from raycap.data.tables import csv_columns, note_unread_columns, read_csv, read_json_lines
from raycap.data.text import clean_caption, is_encodable, read_lines
from raycap.errors import DataError

IMAGE_COLUMNS = ("image", "image_id", "file", "file_name", "filename", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
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


def import_folder(
    root: Path,
    *,
    splits: set[str] | None = None,
    report: InputReport,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> list[ImageRecord]:
    """Records of the asked splits (None: of all), sorted by id.

    Args:
        seed, shares: of the split by hash (see `subsets.split_by_hash`).

    Raises:
        DataError: the folder holds no image, several tables, or a table without an image column, or whose captions are
            under another name.
    """
    check_splits(splits)
    check_shares(shares)
    files = _Files(root, report)
    table = find_table(root)
    named = [] if table is None else [(files.place(row.image), row.split) for row in _rows(table, InputReport("all"))]
    row_splits = RowSplits(named, splits, lambda image_id: split_by_hash(image_id, seed, shares))
    captions = {} if table is None else _read_table(table, files, row_splits, report)
    records = []
    for image_id in sorted(files.images | captions.keys()):
        if not row_splits.asked(image_id):
            continue
        texts = captions.get(image_id, []) if table else _sidecar(root, files.sidecars.get(_stem(image_id)), report)
        cleaned = tuple(caption for text, where in texts if (caption := clean_caption(text, where, report)))
        if not cleaned:
            report.note("image_without_caption", image_id, "no caption: unlabelled")
        records.append(ImageRecord(image_id, str(root / image_id), row_splits.of(image_id), cleaned))
    if table is None:
        _report_lonely_captions(files, report)
    _note_other_files(files, table, report)
    if not files.images and not captions:
        what = "no image is in this folder or below it"
        raise DataError(
            what, key="data.root", value=str(root), remedy=f"put files there ({' '.join(sorted(SUFFIXES))})"
        )
    return records


def find_table(root: Path) -> Path | None:
    """The caption table at the top of the folder, or None; raises DataError where there are several."""
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    tables += [path for path in [root / "captions.txt"] if path.is_file() and _column(csv_columns(path), IMAGE_COLUMNS)]
    named = [path for path in tables if path.stem.lower() == "captions"] or tables
    if len(named) > 1:
        what = f"several tables could hold the captions: {', '.join(path.name for path in named)}"
        raise DataError(what, key="data.root", value=str(root), remedy="leave one, or call it captions.csv or .jsonl")
    return named[0] if named else None


class _Files:
    """What lies in the folder: ids of pictures, other files, and the .txt that may be a picture's captions, by stem."""

    def __init__(self, root: Path, report: InputReport) -> None:
        self._root = root
        self.images: set[str] = set()
        self.others: set[str] = set()
        for folder, files in walk(root):
            for file in files:
                path = (Path(folder) / file).relative_to(root).as_posix()
                if not is_encodable(path):
                    report.add("wrong_encoding", ascii(path), "the file's name is not UTF-8; rename it")
                elif Path(file).suffix.lower() in SUFFIXES:
                    self.images.add(path)
                else:
                    self.others.add(path)
        self.sidecars = {_stem(path): path for path in sorted(self.others) if path.lower().endswith(".txt")}
        self._normal = {unicodedata.normalize("NFC", path): path for path in sorted(self.images | self.others)}

    def place(self, named: str) -> str:
        """The id of an image as a table names it: by its path in the folder, in `images/` in it, or as a whole (as
        `raycap caption` writes them). The path in the folder of one that is not there, "" for one outside."""
        path = PurePosixPath(named.replace("\\", "/"))
        if path.is_absolute() and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        if not named or path.is_absolute() or ".." in path.parts or not is_encodable(named):
            return ""
        inside = unicodedata.normalize("NFC", path.as_posix())
        candidates = (inside, f"images/{inside}", f"Images/{inside}")
        return next((self._normal[name] for name in candidates if name in self._normal), inside)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.images or image_id in self.others


def _read_table(
    table: Path, files: _Files, row_splits: RowSplits, report: InputReport
) -> dict[str, list[tuple[Any, str]]]:
    """{id: its (caption, where)} for every image that the table names and that is there."""
    captions: dict[str, list[tuple[Any, str]]] = {}
    listed: dict[str, str] = {}

    def damaged_is_asked(named: object) -> bool:
        return row_splits.damaged_is_asked(files.place(named) if isinstance(named, str) else None)

    for row in _rows(table, report, damaged_is_asked):
        where, image_id = row.where, files.place(row.image)
        if not image_id:
            detail = f"{row.image!r} is not a path inside the folder"
            report.add("line_malformed", where, detail, asked=row_splits.is_asked(row.split))
            continue
        asked = row_splits.asked(image_id)
        if not row_splits.check(image_id, row.split, where, report):
            continue
        if image_id not in files:
            report.add("image_missing", where, f"{row.image} is not in the folder", asked=asked)
            continue
        if row.is_list and image_id in listed:
            detail = f"{image_id} has a list of captions before, at {listed[image_id]}"
            report.add("duplicate_id", where, detail, asked=asked)
            continue
        if row.is_list:
            listed[image_id] = where
        there = captions.setdefault(image_id, [])
        before = {_spaced(text): place for text, place in there}
        for text in row.captions:
            if (place := before.get(_spaced(text))) is not None:
                report.add("duplicate_id", where, f"{image_id} has this caption before, at {place}", asked=asked)
            else:
                there.append((text, where))
    return captions


def _spaced(text: Any) -> str:
    return " ".join(text.split()) if isinstance(text, str) else repr(text)


def _rows(
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
    def lowered(entry: dict[str, Any]) -> dict[str, Any]:
        return {key.strip().lower(): value for key, value in entry.items()}

    def asked(entry: dict[str, Any]) -> bool:
        return damaged_is_asked(_first_of(lowered(entry), IMAGE_COLUMNS))

    entries = [(where, lowered(entry)) for where, entry in read_json_lines(table, report, asked=asked)]
    keys = list(dict.fromkeys(key for _, entry in entries for key in entry))
    _check_columns(table, keys, (*IMAGE_COLUMNS, *CAPTION_COLUMNS, "split"), report)
    for where, entry in entries:
        named, split = _first_of(entry, IMAGE_COLUMNS), entry.get("split") or ""
        texts, one, several = _first_of(entry, CAPTION_COLUMNS), entry.get("caption"), entry.get("captions")
        fault = "" if isinstance(named, str) and isinstance(split, str) else _ENTRY
        if one is not None and several is not None:  # as `raycap caption --num-captions` writes them
            texts = several
            if not isinstance(several, list) or one not in several:
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


def _first_of(entry: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _stem(path: str) -> str:
    """A picture's path, or that of the text beside it, without its ending."""
    return str(PurePosixPath(path).with_suffix(""))


def _column(columns: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _sidecar(root: Path, name: str | None, report: InputReport) -> list[tuple[Any, str]]:
    if name is None:
        return []
    lines = [(line, f"{name}:{number}") for number, line in read_lines(root / name, report, name=name)]
    while len(lines) > 1 and not lines[-1][0].strip():
        lines.pop()  # line feeds at the end; an empty file stays one empty caption
    return list(lines)


def _note_other_files(files: _Files, table: Path | None, report: InputReport) -> None:
    """Files that nothing was made of, by suffix: photographs of a kind that cannot be read are among them."""
    used = {".txt"} if table is None else {table.suffix.lower()}
    by_suffix: dict[str, list[str]] = {}
    for path in sorted(files.others):
        if (suffix := PurePosixPath(path).suffix.lower()) not in used:
            by_suffix.setdefault(suffix, []).append(path)
    for suffix, paths in by_suffix.items():
        what = f"{len(paths)} {suffix or 'without a suffix'}: left out"
        report.note("unknown_file", paths[0], what, count=len(paths))


def _report_lonely_captions(files: _Files, report: InputReport) -> None:
    """A .txt file whose picture is not there; where no picture has one, .txt files are not captions but notes."""
    texts = {path: _stem(path) for path in files.others if path.lower().endswith(".txt")}
    stems = {_stem(image) for image in files.images}
    record = report.add if stems & set(texts.values()) else report.note
    for path in sorted(path for path, stem in texts.items() if stem not in stems):
        if path.lower() not in ("readme.txt", "license.txt"):
            record("caption_without_image", path, "no image of that name is beside it")
