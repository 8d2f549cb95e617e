"""From an importer's records to a prepared data set: check, cut, write. Running it again changes nothing.

The stage's long part is decoding every photograph once; what was checked is remembered in `.checked.jsonl` beside the
tables (by path, size and time of change), so an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raycap.data import subsets
from raycap.data.dataset import PreparedDataset
from raycap.data.images import MAX_PIXELS, Progress, check_images
from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord, Tables, build_tables, read_tables, write_tables
from raycap.data.split_lists import Listed, one_split
from raycap.errors import DataError

REPORT = "report.json"


def prepare(
    records: Sequence[ImageRecord],
    out_folder: Path,
    *,
    report: InputReport | None = None,
    select_size: int | None = None,
    web_share: float = 0.0,
    seed: int = 0,
    num_labeled: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    progress: Progress | None = None,
    report_file: str | None = REPORT,
) -> PreparedDataset:
    """Checks the records, cuts train into parts and writes the Parquet tables and the report into `out_folder`.

    Args:
        report: the importer's report, so that its faults and those found here are refused together.
        select_size: size of `select`; min(500, 10% of captioned train) unless given, 0 for none.
        web_share: share of train (less select) whose captions only CLIPs see; 0 cuts no `web` and no `pool`.
        seed: of the cuts.
        num_labeled: in a few-label run, `select` holds no more captioned images than this.
        max_pixels: larger pictures are image_too_large.
        report_file: what the report is called there; None writes none, for a folder that does not last.

    Raises:
        DataError: faults that `report.skip` does not allow, all in one message; or nothing is left.
    """
    report = report or InputReport()
    out_folder.mkdir(parents=True, exist_ok=True)
    unique = _one_record_an_image(records, report)
    with _Checked(out_folder / ".checked.jsonl", max_pixels) as checked:
        good = check_images(
            unique,
            report,
            max_pixels=max_pixels,
            threads=threads,
            progress=progress,
            known=checked.known,
            learned=checked.learned,
        )
    _note_same_pictures(good, report)
    if report_file is not None:
        report.write(out_folder / report_file)  # before refusing: the message shows the first faults, this file all
    report.raise_if_refused()
    if not good:
        raise DataError("no image is left to use", key="data.root", remedy=f"look at the input: {report.summary()}")
    parts = cut_parts(good, seed=seed, select_size=select_size, web_share=web_share, num_labeled=num_labeled)
    manifest = {"seed": seed, "web_share": web_share, "counts": _counts(good, parts), "report": report.summary()}
    placed = [replace(record, path=_stored_path(record.path, out_folder)) for record in good]
    _write_if_changed(out_folder, build_tables(placed, parts, manifest))
    return PreparedDataset.open(out_folder)


def cut_parts(
    records: Sequence[ImageRecord],
    *,
    seed: int,
    select_size: int | None = None,
    web_share: float = 0.0,
    num_labeled: int | None = None,
) -> dict[str, str]:
    """{image_id: part} of the train images: `select` from captioned ones, the rest `web`/`pool` or ""."""
    train = [record for record in records if record.split == "train"]
    captioned = [record.image_id for record in train if record.captions]
    select = set(subsets.cut_select(captioned, seed, select_size, num_labeled)) if captioned else set()
    rest = [record.image_id for record in train if record.image_id not in select]
    parts = dict.fromkeys(select, "select")
    if web_share == 0:
        return parts | dict.fromkeys(rest, "")
    web, pool = subsets.cut_web(rest, web_share, seed)
    return parts | dict.fromkeys(web, "web") | dict.fromkeys(pool, "pool")


def _one_record_an_image(records: Sequence[ImageRecord], report: InputReport) -> list[ImageRecord]:
    """Reports duplicate ids and images (by id or by file) in two splits; keeps one record of each."""
    by_id: dict[str, ImageRecord] = {}
    by_path: dict[str, str] = {}
    for record in records:
        path = None if record.path is None else os.path.realpath(record.path)
        first = by_id.get(by_path.get(path or "", record.image_id))
        if first is None:
            by_id[record.image_id] = record
            if path is not None:
                by_path[path] = record.image_id
        elif first.split == record.split:
            same_id = first.image_id == record.image_id
            detail = "this id is there before" if same_id else f"the same file as {first.image_id}"
            report.add("duplicate_id", record.image_id, detail)
        else:
            places = [Listed(each.split, each.image_id) for each in (first, record)]
            kept = one_split(record.path or record.image_id, places[0], places[1], report)
            by_id[first.image_id] = replace(first, split=kept.split)
    return list(by_id.values())


def _note_same_pictures(records: Sequence[ImageRecord], report: InputReport) -> None:
    """Counts pictures that are the same file under two ids; across splits that is a leak worth knowing of."""
    first: dict[str, ImageRecord] = {}
    for record in records:
        seen = first.setdefault(record.digest, record) if record.digest else record
        if seen is not record:
            detail = f"{record.split}: the same picture as {seen.image_id} in {seen.split}"
            report.note("same_picture", record.image_id, detail)


def _counts(records: Sequence[ImageRecord], parts: dict[str, str]) -> dict[str, dict[str, int]]:
    """{split or train/part: images, unlabelled, captions}."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        part = parts.get(record.image_id, "")
        for place in [record.split, *([f"{record.split}/{part}"] if part else [])]:
            counter = counts.setdefault(place, Counter())
            counter.update(images=1, captions=len(record.captions), unlabelled=int(not record.captions))
    return {place: dict(counter) for place, counter in sorted(counts.items())}


def _stored_path(path: str | None, folder: Path) -> str | None:
    """Relative to the prepared folder where the picture lies inside it, so that the folder can move; else absolute."""
    if path is None:
        return None
    absolute, inside = Path(path).absolute(), folder.absolute()
    return absolute.relative_to(inside).as_posix() if absolute.is_relative_to(inside) else str(absolute)


def _write_if_changed(folder: Path, tables: Tables) -> None:
    """Leaves an equal data set untouched, times of change included."""
    try:
        there = read_tables(folder)
    except DataError:
        there = None
    if there != tables:
        write_tables(folder, tables)


class _Checked:
    """What earlier runs learned: lines of [path, bytes, mtime_ns, max_pixels, width, height, digest]."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._entries: dict[str, list[Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a killed run
                continue
            self._entries[entry[0]] = entry
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n" if self._entries else "")

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def known(self, path: Path) -> tuple[int, int, str] | None:
        entry = self._entries.get(str(path))
        return tuple(entry[4:]) if entry and entry[1:4] == self._stamp(path) else None

    def learned(self, path: Path, found: tuple[int, int, str]) -> None:
        entry = [str(path), *self._stamp(path), *found]
        if self._entries.get(str(path)) != entry:
            self._entries[str(path)] = entry
            self._file.write(json.dumps(entry) + "\n")

    def _stamp(self, path: Path) -> list[int]:
        try:
            status = path.stat()
        except OSError:  # it is missing: the check itself says so
            return []
        return [status.st_size, status.st_mtime_ns, self._max_pixels]
