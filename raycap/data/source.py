"""What lies in a data set's folder, as a few words: whether it changed since it was prepared."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from raycap.data.folders import walk
from raycap.data.images import SUFFIXES

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt")


def describe_source(root: Path, *, without: Path | None = None) -> dict[str, str]:
    """Number and hash of the pictures (by name and size) and of the tables and captions (by content) below `root`.

    Times of change do not count: a copy of a data set is the same data set. Hidden files do not either.

    Args:
        without: a folder that is passed over: the storage of runs, where that lies inside `root`.

    Returns:
        {"pictures": "7000 files, <hash>", "tables": "3 files, <hash>"}.

    Raises:
        OSError: a file or folder cannot be read.
    """
    pictures, tables = blake2b(digest_size=8), blake2b(digest_size=8)
    counts = {"pictures": 0, "tables": 0}
    for folder, files in walk(root, without=without):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            path = os.path.join(folder, name)
            line = os.fsencode(os.path.relpath(path, root))
            if suffix in SUFFIXES:
                counts["pictures"] += 1
                pictures.update(line + f"\0{os.stat(path).st_size}\n".encode())
            elif suffix in TABLES:
                counts["tables"] += 1
                tables.update(line + b"\0" + blake2b(Path(path).read_bytes(), digest_size=8).digest())
    found = {"pictures": pictures, "tables": tables}
    return {kind: f"{counts[kind]} files, {state.hexdigest()}" for kind, state in found.items()}
