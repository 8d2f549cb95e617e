"""What a prepared data set is on disk: one record an image, three Parquet files, one manifest that says it is complete.

    images.parquet    image_id, path, width, height, digest    (path: absolute, or relative to the folder)
    captions.parquet  image_id, caption_id, caption
    splits.parquet    image_id, split, part                    (part of train: "", select, web or pool)
    dataset.json      schema_version, counts, seed ...         (written last, removed first: no manifest, no data set)

Rows are sorted by image_id (code points), captions in the order they were given. Ids are strings: "0012" stays "0012".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.errors import DataError
from raycap.whole_file import whole_file, write_whole

SCHEMA_VERSION = 1
SPLITS = ("train", "dev", "test")
PARTS = ("", "select", "web", "pool")
MANIFEST = "dataset.json"

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
CAPTIONS_SCHEMA = pa.schema([pa.field(f, pa.string(), nullable=False) for f in ("image_id", "caption_id", "caption")])
SPLITS_SCHEMA = pa.schema([pa.field(f, pa.string(), nullable=False) for f in ("image_id", "split", "part")])


@dataclass(frozen=True)
class ImageRecord:
    """One image as an importer hands it on.

    `captions` may be empty: unlabelled. `path` is None where only captions are known. `width` and `height` are pixels
    after EXIF orientation, 0 until `images.check_images` has decoded the file; `digest` is the file's BLAKE2b (hex), ""
    until then.
    """

    image_id: str
    path: str | None
    split: str
    captions: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.image_id, str) or not self.image_id:
            raise DataError("an image id is a non-empty string", key="image_id", value=self.image_id)
        if self.split not in SPLITS:
            raise DataError(f"{self.image_id}: expected one of {', '.join(SPLITS)}", key="split", value=self.split)


@dataclass(frozen=True)
class Tables:
    """A prepared folder's content: the three tables and the manifest."""

    images: pa.Table
    captions: pa.Table
    splits: pa.Table
    manifest: dict[str, Any]


def build_tables(records: Sequence[ImageRecord], parts: Mapping[str, str], manifest: Mapping[str, Any]) -> Tables:
    """Tables of records with unique ids; `parts` gives the part of train images, "" for those it does not name."""
    rows = sorted(records, key=lambda record: record.image_id)
    images = {name: [getattr(row, name) for row in rows] for name in IMAGES_SCHEMA.names}
    splits = {
        "image_id": [row.image_id for row in rows],
        "split": [row.split for row in rows],
        "part": [parts.get(row.image_id, "") for row in rows],
    }
    captions = {
        "image_id": [row.image_id for row in rows for _ in row.captions],
        "caption_id": [f"{row.image_id}#{number}" for row in rows for number in range(len(row.captions))],
        "caption": [caption for row in rows for caption in row.captions],
    }
    return Tables(
        images=pa.table(images, schema=IMAGES_SCHEMA),
        captions=pa.table(captions, schema=CAPTIONS_SCHEMA),
        splits=pa.table(splits, schema=SPLITS_SCHEMA),
        manifest={"schema_version": SCHEMA_VERSION, **manifest},
    )


def write_tables(folder: Path, tables: Tables) -> None:
    """Writes a prepared folder. Stopped half-way, it has no manifest, and `read_tables` says so."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in ("images", "captions", "splits"):
        with whole_file(folder / f"{name}.parquet") as unfinished:
            pq.write_table(getattr(tables, name), unfinished, compression="zstd")
    write_whole(folder / MANIFEST, json.dumps(tables.manifest, indent=1, sort_keys=True) + "\n")


def read_tables(folder: Path) -> Tables:
    """Reads a prepared folder; raises DataError when it is missing, unfinished, damaged or of another version."""
    key, remedy = "prepared data set", "run the stage prepare"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("no finished data set is here", key=key, value=str(folder), remedy=remedy) from error
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        what = f"schema version {found}, expected {SCHEMA_VERSION}"
        raise DataError(what, key=key, value=str(folder), remedy="run the stage prepare again")
    schemas = {"images": IMAGES_SCHEMA, "captions": CAPTIONS_SCHEMA, "splits": SPLITS_SCHEMA}
    try:
        tables = {name: pq.read_table(folder / f"{name}.parquet", schema=schema) for name, schema in schemas.items()}
    except (OSError, pa.ArrowException) as error:
        remedy = "run the stage prepare again"
        raise DataError(f"damaged: {error}", key=key, value=str(folder), remedy=remedy) from error
    return Tables(manifest=manifest, **tables)
