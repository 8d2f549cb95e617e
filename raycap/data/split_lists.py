"""Lists of image names, one list a split (`Flickr_8k.trainImages.txt`), and the rule that no image is in two splits.

The rule holds for every list that is there, whichever splits are asked for: a training picture must not be scored as
`test` because nobody looked into the other list.
"""

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


_SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "restval": "train", "training": "train"}


class Listed(NamedTuple):
    """Where a split list names an image."""

    split: str
    where: str


SPLIT_KEYS = "data.splits and evaluate.split; --split"
"""Where the splits are asked for, for remedies."""


def find_split_lists(root: Path, pattern: str, splits: set[str] | None) -> dict[str, Path]:
    """Every list that is there, those of the asked splits among them.

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
    return {split: path for split, path in lists.items() if path.is_file()}


def split_name(name: str) -> str:
    """A split as we call it: `val` and `validation` are dev, `restval` is train; other names in lower case."""
    lowered = name.strip().lower()
    return _SPLIT_NAMES.get(lowered, lowered)


def check_splits(splits: Iterable[str] | None) -> None:
    """Raises DataError unless every split is train, dev or test."""
    for split in sorted(splits or ()):
        if split not in SPLITS:
            raise DataError(f"expected one of {', '.join(SPLITS)}", key="split", value=split)


def read_split_lists(lists: dict[str, Path], report: InputReport, splits: set[str] | None = None) -> dict[str, Listed]:
    """{image name: its split and line} of the asked splits, in the lists' order, train first.

    Reported: duplicate_id (twice in one list), image_in_two_splits (it stays in the more held-out one), line_malformed
    (a path and not a name). Other lists are read for images in two splits; what else is wrong in them is only noted.
    """
    found: dict[str, Listed] = {}
    for split, path in lists.items():
        _read_list(found, split, path, report, splits)
    return {name: listed for name, listed in found.items() if splits is None or listed.split in splits}


def _read_list(found: dict[str, Listed], split: str, path: Path, report: InputReport, splits: set[str] | None) -> None:
    asked = splits is None or split in splits
    for number, line in read_lines(path, report, asked=lambda line: asked):
        name, here = line.strip(), Listed(split, f"{path.name}:{number}")
        if not name:
            continue
        if "\t" in name or "/" in name or "\\" in name:
            report.add("line_malformed", here.where, f"{name!r} is not the name of a photograph", asked=asked)
        elif name not in found:
            found[name] = here
        elif found[name].split == split:
            report.add("duplicate_id", here.where, f"{name} is listed before, at {found[name].where}", asked=asked)
        else:
            found[name] = one_split(name, found[name], here, report, splits)


def one_split(name: str, first: Listed, second: Listed, report: InputReport, splits: set[str] | None = None) -> Listed:
    """Reports an image in two splits and returns the place that stands when that is skipped.

    Args:
        splits: those that are asked for (None: all); where neither place is among them, it is only noted.
    """
    kept = min(first, second, key=lambda listed: HELD_OUT_FIRST.index(listed.split))
    detail = f"{name} is in {second.split} here and in {first.split} at {first.where}; it would stay in {kept.split}"
    asked = splits is None or not splits.isdisjoint((first.split, second.split))
    report.add("image_in_two_splits", second.where, detail, asked=asked)
    return kept
