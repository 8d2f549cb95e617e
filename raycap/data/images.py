"""Opening one picture safely, and checking all of them: RGB, upright, by content and never by suffix.

The header is read first and a picture with too many pixels is refused before a single one is decoded.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.errors import DataError

MAX_PIXELS = 64_000_000
MAX_ASPECT = 200  # longer side to shorter: encoders resize the shorter one, and a longer strip grows to gigabytes
# What cameras, phones and the web write, by its endings; not EPS, PDF and such, which start other programs.
SUFFIXES_BY_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2",),
    "PPM": (".ppm", ".pgm"),
}
SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes)


def is_picture_name(name: str) -> bool:
    """Whether it looks like a picture's name: in a damaged line nothing else says that the name can be read."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then."""


class UnusableImage(DataError):
    """A picture that cannot be used; `kind` is its kind in the input report."""

    kind = "image_broken"


class ImageMissing(UnusableImage):
    """No file is there."""

    kind = "image_missing"


class ImageBroken(UnusableImage):
    """The file is no picture, or a damaged or truncated one."""


class ImageTooLarge(UnusableImage):
    """The header announces more than max_pixels pixels, or a strip; nothing was decoded."""

    kind = "image_too_large"


def open_image(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, upright (EXIF orientation applied), alpha over white, first frame of an animation.

    16-bit and floating grey values are scaled to 8 bit; CMYK, palette, LAB and the like are converted.

    Args:
        source: a path, or the file's bytes.
        max_pixels: most pixels (width x height) that are decoded.

    Raises:
        ImageMissing, ImageBroken, ImageTooLarge: all of them UnusableImage and DataError, naming the file.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    if Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # the limit below is the one that was asked for
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height} pixels, more than {max_pixels} allowed")
            if max(width, height) > MAX_ASPECT * min(width, height):
                what = f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other"
                raise ImageTooLarge(what, key="image", value=name, remedy="cut it to the part that matters")
            picture.load()
            return _upright(_to_rgb(picture), picture)
    except UnusableImage:
        raise
    except FileNotFoundError as error:
        raise ImageMissing("no such file", key="image", value=name, remedy="put the photograph there") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # PIL's decoders raise nearly any type on damaged bytes: each of them means this
        what = f"cannot be decoded as a picture: {type(error).__name__}: {error}"
        remedy = "replace the file, or let data.skip allow image_broken"
        raise ImageBroken(what, key="image", value=name, remedy=remedy) from error


def check_images(
    records: Sequence[ImageRecord],
    report: InputReport,
    *,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    progress: Progress | None = None,
    known: Callable[[Path], tuple[int, int, str] | None] | None = None,
    learned: Callable[[Path, tuple[int, int, str]], None] | None = None,
) -> list[ImageRecord]:
    """Decodes every photograph once; returns the good records, in order, with width, height and digest filled.

    Bad ones go into the report as image_missing, image_broken or image_too_large; the caller decides when to raise.
    Records without a path (captions only) pass as they are.

    Args:
        threads: decoding releases the interpreter lock, so threads scale with cores.
        known, learned: a cache of earlier checks: `known(path)` gives (width, height, digest) or None, and
            `learned` is told, on the calling thread, what a decode found. `prepare` resumes with it.
    """

    def check(record: ImageRecord) -> tuple[int, int, str] | UnusableImage | None:
        if record.path is None:
            return None
        path = Path(record.path)
        try:
            return (known(path) if known else None) or measure(path, max_pixels=max_pixels)
        except UnusableImage as error:
            return error

    good: list[ImageRecord] = []
    done = 0
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for batch in _batches(records, 256):
            for record, found in zip(batch, pool.map(check, batch), strict=True):
                if isinstance(found, UnusableImage):
                    report.add(found.kind, record.image_id, f"{record.path}: {found.what}")
                    continue
                if found and record.path and learned:
                    learned(Path(record.path), found)
                width, height, digest = found or (record.width, record.height, record.digest)
                good.append(replace(record, width=width, height=height, digest=digest))
            done += len(batch)
            if progress:
                progress(done, len(records))
    return good


def measure(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int, str]:
    """(width, height, digest) of a photograph that decodes; raises UnusableImage as `open_image` does."""
    picture = open_image(path, max_pixels=max_pixels)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return picture.width, picture.height, digest


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of PIL can read, with the plugin for what iPhones write."""
    Image.init()
    register_heif_opener()
    return tuple(name for name in SUFFIXES_BY_FORMAT if name in Image.OPEN)


def _too_large(name: str, what: str) -> ImageTooLarge:
    remedy = "raise data.max_pixels if the picture can be trusted"
    return ImageTooLarge(what, key="image", value=name, remedy=remedy)


def _upright(rgb: Image.Image, picture: Image.Image) -> Image.Image:
    """Damaged EXIF leaves the picture as it lies: its pixels are fine."""
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - EXIF parsing raises nearly any type on damaged tags
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return Image.fromarray(_eight_bit(np.asarray(picture))).convert("RGB")
    if "A" in picture.mode.upper().replace("LAB", "") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bit or float as uint8 [H, W]: PIL's own conversion clips them to white."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f":
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0) if low >= 0 and high <= 255 else (low, high)
    elif values.dtype.itemsize == 2 or (low >= 0 and 255 < high <= 65535):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    return np.clip(np.rint((grey - low) * (255.0 / max(high - low, 1e-12))), 0, 255).astype(np.uint8)


def _batches(records: Sequence[ImageRecord], size: int) -> Iterable[Sequence[ImageRecord]]:
    return (records[start : start + size] for start in range(0, len(records), size))
