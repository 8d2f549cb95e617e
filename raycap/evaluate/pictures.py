"""Pictures on their way into a system: which files are meant, and opening them ahead, batch by batch, in order.

One that cannot be read comes through with its error, so that the others go on; memory is bounded by pixels as well as
by number, because photographs of a telephone are hundreds of times as large as thumbnails.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from raycap.data.folders import walk
from raycap.data.images import SUFFIXES, UnusableImage, open_image
from raycap.errors import DataError

MOST_PIXELS = 128_000_000  # in one batch: 384 MB


@dataclass(frozen=True)
class Opened:
    """A file's picture (RGB, upright), or why there is none."""

    index: int
    path: Path
    picture: Image.Image | None = None
    error: UnusableImage | None = None


def picture_batches(
    paths: Sequence[Path], *, batch_size: int, max_pixels: int, threads: int = 2
) -> Iterator[list[Opened]]:
    """All files in their order, at most `batch_size` (and about `MOST_PIXELS`) at a time, opened ahead in threads."""
    batch: list[Opened] = []
    pixels = 0
    for opened in _opened(paths, max_pixels, threads):
        batch.append(opened)
        pixels += opened.picture.width * opened.picture.height if opened.picture else 0
        if len(batch) == batch_size or pixels >= MOST_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _opened(paths: Sequence[Path], max_pixels: int, threads: int) -> Iterator[Opened]:
    def read(index: int, path: Path) -> Opened:
        try:
            return Opened(index, path, picture=open_image(path, max_pixels=max_pixels))
        except UnusableImage as error:
            return Opened(index, path, error=error)

    waiting: deque[Future[Opened]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for index, path in enumerate(paths):
            waiting.append(pool.submit(read, index, path))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def find_pictures(given: Iterable[Path]) -> list[Path]:
    """Files as they are given, and every picture in the given folders: by suffix, sub-folders too, sorted.

    Files that are given by name are taken whatever their suffix, missing ones too: opening them says what is wrong.

    Raises:
        DataError: no picture is in any of the folders, and no file is given besides.
    """
    given = list(given)
    found = [file for path in given for file in (_in_folder(path) if path.is_dir() else [path])]
    if not found:
        raise DataError("no picture is in these folders or below them", key="image",
                        value=", ".join(map(str, given[:5])), remedy=f"known endings: {' '.join(sorted(SUFFIXES))}",
                        )  # fmt: skip
    return found


def _in_folder(folder: Path) -> list[Path]:
    """A sub-folder that cannot be read is returned as if it were a picture: opening it then says why."""
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        found.append(Path(error.filename))

    for inner, files in walk(folder, onerror=unreadable):
        found.extend(Path(inner, name) for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def pictures_by_id(image_ids: Sequence[str], folder: Path, names: Mapping[str, str] | None = None) -> dict[str, Path]:
    """The picture of each image id in a folder: by the given file name, else the id is its path, name or stem.

    Args:
        names: file name by image id, where the annotations say it (COCO's `file_name`). With folders in front
            ("train2014/x.jpg") that are not in this one, its last part counts.

    Raises:
        DataError: the folder is not there; an id has no picture in it, or several; two file names lead to one picture.
    """
    if not folder.is_dir():
        raise DataError("no such folder", key="images", value=str(folder))
    places: dict[str, list[Path]] = {}
    for path in _in_folder(folder):
        inside = path.relative_to(folder)
        for name in {inside.as_posix(), inside.with_suffix("").as_posix(), path.name, path.stem}:
            places.setdefault(name, []).append(path)
    asked = {image_id: (names or {}).get(image_id, image_id) for image_id in image_ids}
    found = {image_id: places.get(name, []) for image_id, name in asked.items()}
    for image_id in set(names or {}) & set(asked):
        named = PurePosixPath(asked[image_id])
        if not found[image_id] and len(named.parts) > 1 and not (folder / named.parts[0]).is_dir():
            found[image_id] = places.get(named.name, [])
    missing = [image_id for image_id, paths in found.items() if not paths]
    if missing:
        raise DataError(f"{len(missing)} image id(s) have no picture in {folder}", key="images", value=missing[:5],
                        remedy="an id is a picture's path in the folder, its name, or its name without ending",
                        )  # fmt: skip
    for image_id, paths in found.items():
        if len(paths) > 1:
            raise DataError(f"{len(paths)} pictures answer to it: {paths[0]}, {paths[1]}", key="image_id",
                            value=image_id, remedy="keep one")  # fmt: skip
    told: dict[Path, str] = {}
    for image_id in asked:
        path = found[image_id][0]
        if image_id in (names or {}) and told.setdefault(path, asked[image_id]) != asked[image_id]:
            raise DataError(f"{told[path]} and {asked[image_id]} are one picture in {folder}", key="images",
                            value=path.name, remedy="name the folder above theirs")  # fmt: skip
    return {image_id: paths[0] for image_id, paths in found.items()}


def coco_file_names(references: Path) -> dict[str, str]:
    """`file_name` by image id of a COCO annotations file; {} for any other file."""
    try:
        content = json.loads(references.read_text(encoding="utf-8-sig"))
    except ValueError:
        return {}
    images = content.get("images") if isinstance(content, dict) else None
    named = [each for each in images if isinstance(each, dict)] if isinstance(images, list) else []
    return {str(each["id"]): str(each["file_name"]) for each in named if "id" in each and "file_name" in each}
