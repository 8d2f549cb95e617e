"""Folders of pictures: what data sets call theirs, and walking through them.

Linked folders are entered; hidden ones and what archives leave are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE_FOLDERS = ("images", "Flicker8k_Dataset", "Images", "Flickr8k_Dataset")
"""Where data sets that travel keep their photographs; the second is how Flickr8k's distributors spelt it."""
NOT_SEARCHED = frozenset({"__MACOSX"})


def walk(
    root: Path, *, onerror: Callable[[OSError], None] | None = None, without: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, its files' names) of `root` and everything below it, in the order of names.

    A link to a folder is a folder, unless it leads back to one that it lies in.

    Args:
        onerror: gets what goes wrong in a sub-folder, which is passed over; ignored when None, as `os.walk` does.
        without: a folder that is not entered.
    """
    for folder, names, files in os.walk(root, followlinks=True, onerror=onerror):
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".")
            and name not in NOT_SEARCHED
            and Path(folder, name) != without
            and _leads_on(folder, name)
        )
        yield folder, sorted(file for file in files if not file.startswith("."))


def _leads_on(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return True
    target, here = os.path.realpath(path), os.path.realpath(folder)
    return here != target and not here.startswith(target.rstrip(os.sep) + os.sep)
