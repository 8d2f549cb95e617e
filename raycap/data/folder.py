"""Importer of a user's own folder: photographs, in sub-folders or not, with captions in one of three ways.

    captions.csv (or .tsv)   columns image (file, path ...), caption (text ...), optional split; a row a caption
    captions.jsonl           {"image": "a.jpg", "caption": "..."} or {"image": ..., "captions": [...], "split": "test"}
    a.txt beside a.jpg       each line a caption

The table may have another name when it is the only one at the top. Images without a caption come in unlabelled. An
image without a split is put into one by the hash of its path: adding images never moves others. Ids are paths relative
to the folder, with forward slashes. Equal captions of an image stay and are counted. What is wrong with rows of splits
that are not asked for is only noted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from raycap.data.caption_table import candidate_tables, find_table, holds_captions, read_rows
from raycap.data.folders import IMAGE_FOLDERS, walk
from raycap.data.images import SUFFIXES
from raycap.data.input_report import InputReport
from raycap.data.row_splits import RowSplits
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import check_splits
from raycap.data.subsets import check_shares, split_by_hash
from raycap.data.text import clean_captions, is_encodable, read_lines
from raycap.errors import DataError


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
    rows = () if table is None else read_rows(table, InputReport("all"))
    named = [(files.place(row.image), row.split) for row in rows]
    row_splits = RowSplits(named, splits, lambda image_id: split_by_hash(image_id, seed, shares))
    captions = {} if table is None else _read_table(table, files, row_splits, report)
    records = []
    for image_id in sorted(files.images | captions.keys()):
        if not row_splits.asked(image_id):
            continue
        texts = captions.get(image_id, []) if table else _sidecar(root, files.sidecars.get(_stem(image_id)), report)
        cleaned = clean_captions(image_id, texts, report)
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


def has_captions(root: Path) -> bool:
    """Whether captions that this importer reads are there: in a table at the top, or beside a picture."""
    if any(map(holds_captions, candidate_tables(root))):
        return True
    files = _Files(root, InputReport("all"))
    return any(_stem(image) in files.sidecars for image in files.images)


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
        """The id of an image as a table names it: by its path in the folder, in `images/` (or its like) in it, or as a
        whole (as `raycap caption` writes them). The path in the folder of one that is not there, "" for one outside."""
        path = PurePosixPath(named.replace("\\", "/"))
        if path.is_absolute() and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        if not named or path.is_absolute() or ".." in path.parts or not is_encodable(named):
            return ""
        inside = unicodedata.normalize("NFC", path.as_posix())
        candidates = (inside, *(f"{folder}/{inside}" for folder in IMAGE_FOLDERS))
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

    for row in read_rows(table, report, damaged_is_asked):
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
        captions.setdefault(image_id, []).extend((text, where) for text in row.captions)
    return captions


def _stem(path: str) -> str:
    """A picture's path, or that of the text beside it, without its ending."""
    return str(PurePosixPath(path).with_suffix(""))


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
