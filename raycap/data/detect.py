"""Which importer reads a folder: by what lies in it, or by name. The one way in for every real data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from raycap.data import coco, csv_layout, flickr8k, folder, karpathy
from raycap.data.folders import IMAGE_FOLDERS
from raycap.data.images import SUFFIXES
from raycap.data.input_report import InputReport
from raycap.data.scenes import dataset as scenes
from raycap.data.schema import ImageRecord
from raycap.data.subsets import shares_of
from raycap.errors import DataError

FORMATS = ("scenes", "flickr8k", "karpathy", "coco", "csv", "folder")
_LOOKED_FOR = {
    "scenes": scenes.TRUTH,
    "flickr8k": flickr8k.TOKEN_FILE,
    "karpathy": "dataset_*.json",
    "coco": "annotations/captions_*.json",
    "csv": "captions.txt or captions.csv (image,caption) beside Images/ or images/",
    "folder": "any image",
}


def import_dataset(
    root: Path,
    *,
    format: str = "auto",
    splits: set[str] | None = None,
    report: InputReport,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> list[ImageRecord]:
    """Records of a data set in any format.

    Args:
        format: one of FORMATS, or `auto`.
        splits: the splits to import; None: all that are there.
        seed, shares: of the split by hash, for formats that may lack splits (csv, folder); by what is imported when
            shares are not given (see `subsets.shares_of`).

    Raises:
        DataError: the folder is not there, is of no known format, or lacks what its format needs.
    """
    _check_folder(root)
    if format == "auto":
        format = detect_format(root)
    if format in ("csv", "folder"):
        read = csv_layout.import_csv if format == "csv" else folder.import_folder
        return read(root, splits=splits, report=report, seed=seed, shares=shares or shares_of(splits))
    importers: dict[str, Callable[..., list[ImageRecord]]] = {
        "scenes": scenes.import_scenes,
        "flickr8k": flickr8k.import_flickr8k,
        "karpathy": karpathy.import_karpathy,
        "coco": coco.import_coco,
    }
    if format not in importers:
        known = ", ".join(("auto", *FORMATS))
        raise DataError("no such format", key="data.format", value=format, remedy=f"one of {known}")
    return importers[format](root, splits=splits, report=report)


def detect_format(root: Path, like: str = "auto") -> str:
    """One of FORMATS; raises DataError that says what was looked for and what was found.

    Args:
        like: the format that a captioner's own data was read as. It is taken where it is there: some folders can be
            read in two ways (Karpathy's file beside COCO's, a table of captions beside Flickr8k's lists), and what is
            `test` in one is mostly `train` in the other.
    """
    _check_folder(root)
    if _can_read(like, root):
        return like
    for name, is_there in _THERE.items():
        if is_there(root):
            return name
    found = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or "nothing"
    looked = "; ".join(f"{what} ({name})" for name, what in _LOOKED_FOR.items())
    raise DataError(
        f"no data set is recognised here. Looked for: {looked}. Found: {shown}",
        key="data.root",
        value=str(root),
        remedy="point data.root at the folder of the data set, or name data.format",
    )


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file and not a folder" if root.exists() else "no such folder"
        raise DataError(what, key="data.root", value=str(root), remedy="give the absolute path of the data set")


def _can_read(format: str, root: Path) -> bool:
    """Whether the importer finds what it needs; any picture would do for `folder`, so its captions must be there."""
    if format == "csv":
        return csv_layout.has_table(root) and _has_image_folder(root)
    if format == "folder":  # scenes have a table as well, which gives the same splits
        return not _THERE["scenes"](root) and folder.has_captions(root)
    return format in _THERE and _THERE[format](root)


def _has_image_folder(root: Path) -> bool:
    return any((root / name).is_dir() for name in IMAGE_FOLDERS)


def _has_image(root: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in root.rglob("*") if not path.name.startswith("."))


_THERE: dict[str, Callable[[Path], bool]] = {
    "scenes": lambda root: (root / scenes.TRUTH).is_file() and (root / scenes.CAPTIONS).is_file(),
    "flickr8k": lambda root: (root / flickr8k.TOKEN_FILE).is_file(),
    "karpathy": lambda root: karpathy.find_split_file(root) is not None,
    "coco": lambda root: bool(coco.find_annotations(root)),
    "csv": lambda root: csv_layout.is_csv_layout(root) and _has_image_folder(root),
    "folder": _has_image,
}
