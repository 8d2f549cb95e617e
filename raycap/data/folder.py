"""Importer of a user's own folder: photographs, in sub-folders or not, with captions in one of three ways.

    captions.csv (or .tsv)   columns image (file, path ...), caption (text ...), optional split; a row a caption
    captions.jsonl           {"image": "a.jpg", "caption": "..."} or {"image": ..., "captions": [...], "split": "test"}
    a.txt beside a.jpg       each line a caption

The table may have another name when it is the only one at the top. Images without a caption come in unlabelled. An
image without a split is put into one by its hash: adding images never moves others. Ids are paths relative to the
folder, with forward slashes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from raycap.data.folders import walk
from raycap.data.images import SUFFIXES
from raycap.data.input_report import InputReport
from raycap.data.schema import SPLITS, ImageRecord
from raycap.data.split_lists import Listed, check_splits, one_split
from raycap.data.subsets import check_shares, split_by_hash
from raycap.data.tables import csv_columns, read_csv, read_json_lines
from raycap.data.text import clean_caption, is_encodable, read_lines
from raycap.errors import DataError

IMAGE_COLUMNS = ("image", "image_id", "file", "file_name", "filename", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "restval": "train", "training": "train"}


class Row(NamedTuple):
    """One row of a table: the image as it is named there, the captions, the split ("" where none is given)."""

    where: str
    image: str
    captions: list[Any]
    split: str


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
        DataError: the folder holds no image, several tables, or a table without an image column.
    """
    check_splits(splits)
    check_shares(shares)
    files = _Files(root, report)
    table = find_table(root)
    captions, places = ({}, {}) if table is None else _read_table(table, root, files, report)
    records = []
    for image_id in sorted(files.images | captions.keys()):
        split = places[image_id].split if image_id in places else split_by_hash(image_id, seed, shares)
        if splits is not None and split not in splits:
            continue
        texts = captions.get(image_id, []) if table else _sidecar(root, files.sidecars.get(_stem(image_id)), report)
        cleaned = tuple(caption for text, where in texts if (caption := clean_caption(text, where, report)))
        if not cleaned:
            report.note("image_without_caption", image_id, "no caption: unlabelled")
        records.append(ImageRecord(image_id, str(root / image_id), split, cleaned))
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

    def find(self, named: str) -> str | None:
        """The id of a file as a table names it: relative to the folder, or to `images/` in it."""
        path = PurePosixPath(unicodedata.normalize("NFC", named.replace("\\", "/"))).as_posix()
        for candidate in (path, f"images/{path}", f"Images/{path}"):
            if candidate in self._normal:
                return self._normal[candidate]
        return None


def _read_table(
    table: Path, root: Path, files: _Files, report: InputReport
) -> tuple[dict[str, list[tuple[Any, str]]], dict[str, Listed]]:
    """{id: its (caption, where)} for every image that the table names and that is there, and the splits it gives."""
    captions: dict[str, list[tuple[Any, str]]] = {}
    places: dict[str, Listed] = {}
    for where, named, texts, split in _rows(table, report):
        path = PurePosixPath(named.replace("\\", "/"))
        if path.is_absolute() and path.is_relative_to(root):  # as `raycap caption` writes them
            path = path.relative_to(root)
            named = str(path)
        if not named or path.is_absolute() or ".." in path.parts or not is_encodable(named):
            report.add("line_malformed", where, f"{named!r} is not a path inside the folder")
        elif split and split not in SPLITS:
            report.add("unknown_split", where, f"{split!r} is not one of {', '.join(SPLITS)}")
        elif (image_id := files.find(named)) is None:
            report.add("image_missing", where, f"{named} is not in the folder")
        else:
            captions.setdefault(image_id, []).extend((text, where) for text in texts)
            here = Listed(split, where)
            if split and image_id in places and places[image_id].split != split:
                places[image_id] = one_split(image_id, places[image_id], here, report)
            elif split:
                places.setdefault(image_id, here)
    return captions, places


def _rows(table: Path, report: InputReport) -> Iterator[Row]:
    if table.suffix.lower() == ".jsonl":
        yield from _json_rows(table, report)
        return
    columns = csv_columns(table)
    image, caption = _column(columns, IMAGE_COLUMNS), _column(columns, CAPTION_COLUMNS)
    if image is None:
        what = f"{table.name} has no image column (its header: {', '.join(columns) or 'empty'})"
        raise DataError(what, key="data.root", value=str(table), remedy="give it the header image,caption")
    for where, row in read_csv(table, report):
        yield Row(where, row[image], [row[caption]] if caption else [], _split_name(row.get("split", "")))


def _json_rows(table: Path, report: InputReport) -> Iterator[Row]:
    for where, entry in read_json_lines(table, report):
        image, caption = _column(list(entry), IMAGE_COLUMNS), _column(list(entry), CAPTION_COLUMNS)
        named, split = entry.get(image or ""), entry.get("split") or ""
        if not isinstance(named, str) or not isinstance(split, str):
            report.add("line_malformed", where, 'expected {"image": "path", "caption": "...", "split": "train"}')
            continue
        texts = entry.get(caption or "")
        listed = texts if isinstance(texts, list) else [] if texts is None else [texts]
        yield Row(where, named, listed, _split_name(split))


def _stem(path: str) -> str:
    """A picture's path, or that of the text beside it, without its ending."""
    return str(PurePosixPath(path).with_suffix(""))


def _column(columns: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _split_name(name: str) -> str:
    lowered = name.strip().lower()
    return _SPLIT_NAMES.get(lowered, lowered)


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
