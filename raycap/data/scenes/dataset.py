"""Drawing the whole set into a folder, and importing it.

    images/<id>.png     64 x 64 RGB, no metadata
    captions.jsonl      {"image_id", "image", "split", "captions"} a line; no captions: unlabelled
    scenes.json         the truth about every picture, and what was asked; written last: the mark of a finished folder

An image depends on seed, style and its id alone, so a larger set holds the pictures of a smaller one, and an
interrupted drawing goes on where it was.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raycap.data.input_report import InputReport
from raycap.data.scenes.drawing import draw
from raycap.data.scenes.grammar import references
from raycap.data.scenes.styles import find_style
from raycap.data.scenes.world import Scene, imagine
from raycap.data.schema import SPLITS, ImageRecord
from raycap.data.split_lists import check_splits
from raycap.data.subsets import hash_order
from raycap.data.tables import read_json, read_json_lines
from raycap.data.text import clean_caption
from raycap.errors import DataError
from raycap.whole_file import write_whole

VERSION = 2  # raise it when the same seed draws or says something else
CAPTIONS, TRUTH = "captions.jsonl", "scenes.json"


def draw_scenes(
    folder: Path,
    *,
    num_train: int,
    num_dev: int,
    num_test: int,
    unlabelled_share: float = 0.0,
    seed: int = 0,
    style: str = "default",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draws the set; does nothing when the folder already holds just this one.

    Args:
        unlabelled_share: share of the training images without captions (rounded); larger shares contain smaller ones.
        progress: called with (done, total) now and then.

    Raises:
        DataError: unknown style, a number or share out of range.
    """
    find_style(style)
    numbers = {"train": num_train, "dev": num_dev, "test": num_test}
    for split, number in numbers.items():
        if number < 0:
            raise DataError("expected 0 or more images", key=f"data.scenes.num_{split}", value=number)
    if not 0 <= unlabelled_share <= 1:
        raise DataError("expected a share in [0, 1]", key="data.scenes.unlabelled_share", value=unlabelled_share)
    asked = {"version": VERSION, "seed": seed, "style": style, "unlabelled_share": unlabelled_share, **numbers}
    if _finished(folder) == asked:
        return
    (folder / TRUTH).unlink(missing_ok=True)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [(split, f"{split}_{number:05d}") for split in SPLITS for number in range(numbers[split])]
    unlabelled = _unlabelled([name for split, name in names if split == "train"], unlabelled_share, seed)
    scenes, lines = {}, []
    for done, (split, name) in enumerate(names, start=1):
        scene = imagine(name, seed=seed, style=style)
        _write(folder / "images" / f"{name}.png", png_bytes(draw(scene)))
        captions = [] if name in unlabelled else list(references(scene))
        lines.append(
            json.dumps({"image_id": name, "image": f"images/{name}.png", "split": split, "captions": captions})
        )
        scenes[name] = scene.to_json()
        if progress and (done % 100 == 0 or done == len(names)):
            progress(done, len(names))
    _write(folder / CAPTIONS, "".join(line + "\n" for line in lines).encode())
    _write(folder / TRUTH, json.dumps({"asked": asked, "scenes": scenes}).encode())


def import_scenes(root: Path, *, splits: set[str] | None = None, report: InputReport) -> list[ImageRecord]:
    """Records of a drawn folder; ids such as `train_00012`, a later one never changes an earlier one.

    Raises:
        DataError: the folder is no finished set of scenes, or an asked split has no image.
    """
    check_splits(splits)
    if _finished(root) is None:
        what = f"no finished set of scenes is here ({TRUTH} is missing or damaged)"
        raise DataError(what, key="data.root", value=str(root), remedy="draw it again")
    records = []
    for where, entry in read_json_lines(root / CAPTIONS, report):
        if splits is None or entry["split"] in splits:
            cleaned = [clean_caption(caption, where, report) for caption in entry["captions"]]
            captions = tuple(caption for caption in cleaned if caption)
            records.append(ImageRecord(entry["image_id"], str(root / entry["image"]), entry["split"], captions))
    for split in sorted((splits or set()) - {record.split for record in records}):
        raise DataError(f"no {split} scene was drawn", key=f"data.scenes.num_{split}", value=0, remedy="draw some")
    return records


def load_truth(root: Path) -> dict[str, Scene]:
    """{image_id: scene} of a drawn folder, for oracles and tests; models never see it."""
    return {name: Scene.from_json(fields) for name, fields in read_json(root / TRUTH)["scenes"].items()}


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] as PNG without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _unlabelled(ids: list[str], share: float, seed: int) -> set[str]:
    return set(hash_order(ids, seed, "unlabelled")[: round(share * len(ids))])


def _finished(folder: Path) -> dict[str, object] | None:
    """What was asked of a finished folder; None where none is."""
    try:
        asked = json.loads((folder / TRUTH).read_bytes())["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return asked if isinstance(asked, dict) else None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; an equal file stays as it is, so that its time of change tells the truth."""
    if path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    write_whole(path, content)
