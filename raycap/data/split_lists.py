"""Lists of image names, one list a split (`Flickr_8k.trainImages.txt`), and the rule that no image is in two splits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from raycap.data.input_report import InputReport
from raycap.data.schema import SPLITS
from raycap.data.text import read_lines
from raycap.errors import DataError

# Where an image in two splits may be skipped, it stays in the more held-out one: nothing that reports is trained on.
HELD_OUT_FIRST = ("test", "dev", "train")


class Listed(NamedTuple):
    """Where a split list names an image."""

    split: str
    where: str


SPLIT_KEYS = "data.splits and evaluate.split; --split"
"""Where the splits are asked for, for remedies."""


def find_split_lists(root: Path, pattern: str, splits: set[str] | None) -> dict[str, Path]:
    """The lists of the asked splits, of all that are there when `splits` is None.

    Args:
        pattern: a file name with `{split}` in it.

    Raises:
        DataError: an asked list is missing.
    """
    check_splits(splits)
    lists = {split: root / pattern.format(split=split) for split in SPLITS}
    for split in sorted(splits or ()):
        if not lists[split].is_file():
            what = f"the split list {lists[split].name} is not there"
            raise DataError(
                what, key="data.root", value=str(root), remedy=f"put it there, or ask for other splits ({SPLIT_KEYS})"
            )
    return {split: path for split, path in lists.items() if path.is_file() and (splits is None or split in splits)}


def check_splits(splits: Iterable[str] | None) -> None:
    """Raises DataError unless every split is train, dev or test."""
    for split in sorted(splits or ()):
        if split not in SPLITS:
            raise DataError(f"expected one of {', '.join(SPLITS)}", key="split", value=split)


def read_split_lists(lists: dict[str, Path], report: InputReport) -> dict[str, Listed]:
    """{image name: its split and line}, in the lists' order, train first.

    Reported: duplicate_id (twice in one list), image_in_two_splits (it stays in the more held-out one), line_malformed
    (a path and not a name).
    """
    found: dict[str, Listed] = {}
    for split, path in lists.items():
        for number, line in read_lines(path, report):
            name, here = line.strip(), Listed(split, f"{path.name}:{number}")
            if not name:
                continue
            if "\t" in name or "/" in name or "\\" in name:
                report.add("line_malformed", here.where, f"{name!r} is not the name of a photograph")
            elif name not in found:
                found[name] = here
            elif found[name].split == split:
                report.add("duplicate_id", here.where, f"{name} is listed before, at {found[name].where}")
            else:
                found[name] = one_split(name, found[name], here, report)
    return found


def one_split(name: str, first: Listed, second: Listed, report: InputReport) -> Listed:
    """Reports an image in two splits and returns the place that stands when that is skipped."""
    kept = min(first, second, key=lambda listed: HELD_OUT_FIRST.index(listed.split))
    detail = f"{name} is in {second.split} here and in {first.split} at {first.where}; it would stay in {kept.split}"
    report.add("image_in_two_splits", second.where, detail)
    return kept
