"""Reading a prepared data set: ids in a fixed order, references, paths, cuts.

Captions stay in Arrow columns with one offset an image, so 120,000 images with 600,000 captions take tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raycap.data import schema, subsets
from raycap.data.schema import PARTS, SPLITS, ImageRecord, Tables
from raycap.errors import DataError


class PreparedDataset:
    """A prepared data set, read-only. Every list of ids is sorted by code points: the same in every process."""

    def __init__(self, folder: Path, tables: Tables) -> None:
        """`PreparedDataset.open(folder)` is the usual way in."""
        self.folder = folder
        self.manifest: dict[str, Any] = tables.manifest
        self._ids: list[str] = tables.images["image_id"].to_pylist()
        self._rows = {image_id: row for row, image_id in enumerate(self._ids)}
        self._images = tables.images
        self._captions = tables.captions["caption"].combine_chunks()
        self._split = tables.splits["split"].to_pylist()
        self._part = tables.splits["part"].to_pylist()
        offsets = _offsets(tables.captions["image_id"], self._rows)
        if tables.splits["image_id"].to_pylist() != self._ids or offsets is None:
            what = "damaged: images, captions and splits do not name the same images"
            raise DataError(what, key="prepared data set", value=str(folder), remedy="run the stage prepare again")
        self._offsets: np.ndarray = offsets

    @classmethod
    def open(cls, folder: Path | str) -> PreparedDataset:
        """Opens a folder that `prepare` wrote; raises DataError when it is missing, unfinished or damaged."""
        return cls(Path(folder), schema.read_tables(Path(folder)))

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def ids(self, split: str, part: str | Collection[str] | None = None) -> list[str]:
        """The sorted ids of a split; of train, `part` ("", select, web, pool, or several of them) narrows it."""
        parts = None if part is None else {part} if isinstance(part, str) else set(part)
        if split not in SPLITS:
            raise DataError(f"expected one of {', '.join(SPLITS)}", key="split", value=split)
        if parts is not None and not parts <= set(PARTS):
            raise DataError(f"expected parts among {', '.join(map(repr, PARTS))}", key="part", value=part)
        rows = zip(self._ids, self._split, self._part, strict=True)
        return [i for i, in_split, in_part in rows if in_split == split and (parts is None or in_part in parts)]

    def references(self, image_id: str) -> tuple[str, ...]:
        """The image's captions in their given order; () for an unlabelled image."""
        row = self._row(image_id)
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        return tuple(self._captions[start:stop].to_pylist())

    def path(self, image_id: str) -> Path:
        """Where the photograph lies; raises DataError for a caption-only image."""
        stored = self._images["path"][self._row(image_id)].as_py()
        if stored is None:
            raise DataError("this image has captions but no photograph", key="image_id", value=image_id)
        return self.folder / stored

    def size(self, image_id: str) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        row = self._row(image_id)
        return self._images["width"][row].as_py(), self._images["height"][row].as_py()

    def labelled(self, split: str, part: str | Collection[str] | None = None) -> list[str]:
        """The ids of `ids(split, part)` that have captions."""
        return [image_id for image_id in self.ids(split, part) if self._has_captions(image_id)]

    def captioner_ids(self) -> list[str]:
        """Training images of the captioner, labelled or not: train less `select` and less `web`."""
        return self.ids("train", ("", "pool"))

    def clip_ids(self) -> list[str]:
        """Captioned images that a CLIP trained here may see: `web` where it was cut, else train less `select`."""
        return self.labelled("train", "web") or self.labelled("train", "")

    def select_ids(self, num_labeled: int | None = None) -> list[str]:
        """Captioned images for model selection; a few-label run gets no more of them than it may read captions."""
        ids = self.labelled("train", "select")
        if num_labeled is None or num_labeled >= len(ids):
            return ids
        return sorted(subsets.hash_order(ids, self.seed, "select")[:num_labeled])

    def labelled_ids(
        self, *, num_labeled: int | None = None, labeled_fraction: float | None = None, seed: int | None = None
    ) -> list[str]:
        """The captioner's labelled images: a nested subset of the captioned `captioner_ids` (all, unless sized).

        Args:
            seed: of the subset; the seed of `prepare` unless given.
        """
        captioned = self.labelled("train", ("", "pool"))
        seed = self.seed if seed is None else seed
        return subsets.labelled_subset(captioned, num_labeled=num_labeled, labeled_fraction=labeled_fraction, seed=seed)

    def records(self, split: str | None = None) -> list[ImageRecord]:
        """The records again, with absolute paths; for exports and tests."""
        wanted = self._ids if split is None else self.ids(split)
        return [self._record(image_id) for image_id in wanted]

    @property
    def seed(self) -> int:
        """The seed of `prepare`."""
        return int(self.manifest.get("seed", 0))

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2b (hex) of ids, splits, parts, sizes, picture digests and captions: equal wherever the folder lies."""
        state = blake2b(digest_size=16)
        images = zip(*(self._images[name].to_pylist() for name in ("width", "height", "digest")), strict=True)
        for image_id, (width, height, digest) in zip(self._ids, images, strict=True):
            row = self._rows[image_id]
            fields = [image_id, self._split[row], self._part[row], str(width), str(height), digest]
            for field in (*fields, *self.references(image_id), ""):
                raw = field.encode()
                state.update(len(raw).to_bytes(4, "big") + raw)
        return state.hexdigest()

    def _row(self, image_id: str) -> int:
        row = self._rows.get(image_id)
        if row is None:
            raise DataError("no such image in the data set", key="image_id", value=image_id)
        return row

    def _has_captions(self, image_id: str) -> bool:
        row = self._rows[image_id]
        return bool(self._offsets[row + 1] > self._offsets[row])

    def _record(self, image_id: str) -> ImageRecord:
        row = self._row(image_id)
        stored = self._images["path"][row].as_py()
        width, height = self.size(image_id)
        return ImageRecord(
            image_id=image_id,
            path=None if stored is None else str((self.folder / stored).absolute()),
            split=self._split[row],
            captions=self.references(image_id),
            width=width,
            height=height,
            digest=self._images["digest"][row].as_py(),
        )


def _offsets(image_ids: pa.ChunkedArray, rows: dict[str, int]) -> np.ndarray | None:
    """int64 [images + 1]: image r's captions are rows offsets[r] to offsets[r + 1]; None where the order is broken."""
    owners = np.fromiter((rows.get(i, -1) for i in image_ids.to_pylist()), dtype=np.int64, count=len(image_ids))
    if len(owners) and (owners.min() < 0 or (np.diff(owners) < 0).any()):
        return None
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(rows)))])
