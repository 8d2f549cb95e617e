"""Importer of the original Flickr8k layout, which Flickr30k copies as well.

    Flickr8k.token.txt               one caption a line: `name.jpg#0<tab>caption`
    images/ or Flicker8k_Dataset/    the photographs (the second is how the distributors spelt it)
    Flickr_8k.{train,dev,test}Images.txt

Only the list and the photographs of the asked splits need to be there. Captions of all other images are counted
(caption_without_image), never an error; so is the key `2258277193_586949ec62.jpg.1` of the published file, which
names a picture that never existed. Damaged lines of theirs are counted as what is wrong with them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from raycap.data.folders import IMAGE_FOLDERS
from raycap.data.images import is_picture_name
from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.data.split_lists import Listed, find_split_lists, read_split_lists
from raycap.data.text import clean_caption, read_lines
from raycap.errors import DataError

TOKEN_FILE = "Flickr8k.token.txt"
SPLIT_LIST = "Flickr_8k.{split}Images.txt"
_KEY = re.compile(r"(?P<name>[^#]+)#(?P<number>[0-9]{1,9})")
_NAME = re.compile(r"[^#\t]+(?=[#\t])|\S+")
"""The image of a line that is not as it should be: what stands before the number or the tab, or the first word."""


def import_flickr8k(root: Path, *, splits: set[str] | None = None, report: InputReport) -> list[ImageRecord]:
    """Records of the asked splits (None: of all whose list is there), in the lists' order; ids are file names.

    Every list that is there is read, so that an image in two of them is found whichever is asked for.

    Raises:
        DataError: the token file, the folder of photographs or an asked list is not there.
    """
    lists = find_split_lists(root, SPLIT_LIST, splits)
    if not lists:
        name = SPLIT_LIST.format(split="{train,dev,test}")
        raise DataError(f"no split list {name} is there", key="data.root", value=str(root), remedy="put them there")
    folder = find_image_folder(root)
    listed = read_split_lists(lists, report, splits)
    captions = _read_captions(root / TOKEN_FILE, set(listed), report)
    return join_captions(listed, captions, folder, report)


def find_image_folder(root: Path) -> Path:
    """The folder of photographs; raises DataError with what was looked for."""
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    what = f"no folder of photographs is there (looked for {', '.join(name + '/' for name in IMAGE_FOLDERS)})"
    raise DataError(what, key="data.root", value=str(root), remedy="put the photographs there")


def join_captions(
    listed: Mapping[str, Listed], captions: Mapping[str, tuple[str, ...]], folder: Path, report: InputReport
) -> list[ImageRecord]:
    """One record for each listed image that has its photograph; reports image_missing, notes image_without_caption."""
    present = {path.name for path in folder.iterdir()}
    records = []
    for name, (split, where) in listed.items():
        if name not in present:
            report.add("image_missing", where, f"{name} is not in {folder}")
            continue
        if name not in captions:
            report.note("image_without_caption", where, f"{name} has no caption")
        records.append(ImageRecord(name, str(folder / name), split, captions.get(name, ())))
    return records


def note_other_captions(others: Mapping[str, int], report: InputReport, file: str) -> None:
    """Counts the captions of images that are not imported, one note an image."""
    for name, count in others.items():
        report.note("caption_without_image", file, f"{name} is not an image of the imported splits", count)


def _read_captions(path: Path, wanted: set[str], report: InputReport) -> dict[str, tuple[str, ...]]:
    numbered: dict[str, dict[int, str]] = {}
    others: Counter[str] = Counter()

    def asked(line: str) -> bool:
        """Whether a damaged line is of a wanted image, or does not say of which."""
        found = _NAME.match(line)
        name = found[0].strip() if found else ""
        return name in wanted or not is_picture_name(name)

    for line_number, line in read_lines(path, report, asked=asked):
        if not line.strip():
            continue
        where = f"{path.name}:{line_number}"
        key, tab, text = line.partition("\t")
        match = _KEY.fullmatch(key.strip())
        if not tab or match is None:
            detail = f"expected name#number<tab>caption, found {line[:60]!r}"
            report.add("line_malformed", where, detail, asked=asked(line))
            continue
        name, number = match["name"], int(match["number"])
        if name not in wanted:
            others[name] += 1
        elif number in numbered.get(name, {}):
            report.add("duplicate_id", where, f"the caption {name}#{number} is there before")
        elif (caption := clean_caption(text, where, report)) is not None:
            numbered.setdefault(name, {})[number] = caption
    note_other_captions(others, report, path.name)
    return {name: tuple(caption for _, caption in sorted(found.items())) for name, found in numbered.items()}
