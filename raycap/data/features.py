"""Frozen features on disk: Arrow files that are read memory-mapped, one row an image, written shard by shard.

A shard is a fixed slice of the images in their order, named by its number and written whole or not at all, so an
extraction that was interrupted goes on with the missing shards. Views of its images lie in files beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycap.errors import DataError
from raycap.whole_file import whole_file, write_whole

META = "features.json"


def shard_file(folder: Path, number: int, view: int = 0) -> Path:
    return folder / (f"part-{number:05d}.view-{view}.arrow" if view else f"part-{number:05d}.arrow")


def write_shard(
    folder: Path, number: int, image_ids: Sequence[str], features: NDArray[np.floating], view: int = 0
) -> None:
    """Write one shard atomically.

    Args:
        image_ids: length n.
        features: float16 or float32, [n, D] (pooled) or [n, G, D] (grid).
        view: which view of the images they are of; 0 is the whole picture.
    """
    flat = np.ascontiguousarray(features.reshape(len(image_ids), -1))
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    table = pa.table({"image_id": pa.array(list(image_ids), pa.string()), "features": values})
    table = table.replace_schema_metadata({"shape": json.dumps(features.shape[1:])})
    with (
        whole_file(shard_file(folder, number, view)) as unfinished,
        pa.OSFile(str(unfinished), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def shard_shape(folder: Path, number: int) -> tuple[int, ...]:
    """Shape of one image's features in a shard."""
    schema = pa.ipc.open_file(pa.memory_map(str(shard_file(folder, number)))).schema
    return tuple(json.loads(schema.metadata[b"shape"]))


def write_meta(folder: Path, *, shape: Sequence[int], shards: int, source: str, views: int = 0) -> None:
    """Seal a finished extraction: the shape of one image's features, the numbers of shards and of further views, and
    the encoder's name."""
    content = {"shape": list(shape), "shards": shards, "source": source, "views": views}
    write_whole(folder / META, json.dumps(content))


class FeatureStore:
    """Features by image id, memory-mapped: opening costs nothing, and processes of one machine share the pages.

    View 0 of an image is the whole picture. Training images may have further ones, 1 to `num_views`.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], source: str, shards: int, views: int = 0) -> None:
        self.folder, self.shape, self.source = folder, shape, source
        self._arrays: list[NDArray[np.floating]] = []
        self._rows: list[dict[str, tuple[int, int]]] = [{} for _ in range(views + 1)]  # by view
        self._whole = shards  # so many arrays are of whole pictures; those of views follow
        files = [(view, shard_file(folder, number, view)) for view in range(views + 1) for number in range(shards)]
        for view, file in files:
            if view and not file.exists():
                continue  # none of this shard's images is trained on
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            column = table.column("features")
            # a shard is one batch, and that batch is the file; `combine_chunks` would copy it into every process
            column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            for row, image_id in enumerate(table.column("image_id").to_pylist()):
                self._rows[view][image_id] = (len(self._arrays), row)
            self._arrays.append(column.flatten().to_numpy(zero_copy_only=True).reshape(len(table), *shape))

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open a finished extraction.

        Raises:
            DataError: the folder holds none, or one that was interrupted.
        """
        meta = folder / META
        if not meta.is_file():
            raise DataError("holds no finished features", key="features", value=str(folder),
                            remedy="run the stage `features` (it goes on where it was)")  # fmt: skip
        content = json.loads(meta.read_text())
        return cls(folder, tuple(content["shape"]), content["source"], content["shards"], content.get("views", 0))

    def __len__(self) -> int:
        return len(self._rows[0])

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows[0]

    @property
    def num_views(self) -> int:
        """Views of a training image beside the whole picture."""
        return len(self._rows) - 1

    @property
    def kind(self) -> str:
        return "grid" if len(self.shape) == 2 else "pooled"

    def warm(self, share_of_memory: float = 0.5, *, views: bool = True) -> bool:
        """Read the files once from start to end, so that random reads later find them in the page cache.

        Reading them row by row in random order from a cold disk is many times slower. Done only when they fit into
        `share_of_memory` of what memory there is for it; whether it was done.

        Args:
            views: the further views too, or the whole pictures alone.
        """
        wanted = self._arrays if views else self._arrays[: self._whole]
        if sum(array.nbytes for array in wanted) > share_of_memory * _available():
            return False
        for array in wanted:
            array.reshape(-1).view(np.uint8)[::4096].sum()
        return True

    def get(
        self, image_ids: Sequence[str], out: NDArray[np.float32] | None = None, views: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """float32 [B, D] or [B, G, D], a copy (nobody must write into the mapped file).

        Args:
            image_ids: length B, in any order, repeats allowed.
            out: where to copy to; a new array when None.
            views: length B, which view of each; the whole picture when None.

        Raises:
            DataError: an image has no features here, or not of that view.
        """
        out = np.empty((len(image_ids), *self.shape), np.float32) if out is None else out
        for index, image_id in enumerate(image_ids):
            view = 0 if views is None else views[index]
            place = self._rows[view].get(image_id) if view < len(self._rows) else None
            if place is None:
                raise DataError("has no features" + (f" of view {view}" if view else ""), key="image_id",
                                value=image_id, remedy=f"features of {len(self)} images lie in {self.folder}",
                                )  # fmt: skip
            out[index] = self._arrays[place[0]][place[1]]
        return out


def _available() -> int:
    """Bytes of memory that files may fill: what is free, and what other files fill now."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
