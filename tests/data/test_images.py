from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycap.data.images import ImageBroken, ImageMissing, ImageTooLarge, check_images, open_image
from raycap.data.input_report import InputReport
from raycap.data.schema import ImageRecord
from raycap.errors import DataError


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces any size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_rgb_comes_back_as_it_is() -> None:
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    assert (np.asarray(open_image(encoded(Image.fromarray(pixels)))) == pixels).all()


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "red"), "JPEG"))
    assert open_image(path).size == (3, 2)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(turn: int) -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    moves = {1: (), 2: (0,), 3: (3,), 4: (1,), 5: (5,), 6: (2,), 7: (6,), 8: (4,)}[turn]
    stored = upright
    for move in moves:  # the inverse of what a viewer does for this tag
        stored = stored.transpose(Image.Transpose(move))
    exif = Image.Exif()
    exif[0x0112] = turn
    opened = open_image(encoded(stored, exif=exif))
    assert (np.asarray(opened) == np.asarray(upright)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])
def test_every_mode_becomes_rgb_and_a_light_grey_stays_light(mode: str) -> None:
    grey = Image.new("L", (4, 4), 200)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        picture = Image.fromarray(np.full((4, 4), 200 / 255, dtype=np.float32))
    elif mode == "LAB":
        picture = Image.new("LAB", (4, 4), (204, 0, 0))
    else:
        picture = grey.convert("RGB").convert(mode) if mode not in ("1", "L", "LA") else grey.convert(mode)
    form = {"PA": "TIFF", "YCbCr": "TIFF", "LAB": "TIFF", "F": "TIFF", "CMYK": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    if mode in ("HSV", "PA"):
        picture, form = picture.convert("RGBA"), "PNG"
    opened = open_image(encoded(picture, form))
    assert opened.mode == "RGB"
    assert abs(int(np.asarray(opened).mean()) - (255 if mode == "1" else 200)) <= 60


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp))))[..., 0]
    assert opened[0, 0] == 0
    assert opened[7, 7] == 255
    assert len(np.unique(opened)) == 64


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert open_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert open_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(Image.new("RGB", (2, 2), "red"), transparency=(255, 0, 0))).getpixel((0, 0)) == (255,) * 3


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    opened = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert opened.getpixel((1, 1)) == (254, 0, 0) or opened.getpixel((1, 1)) == (255, 0, 0)


def test_a_bomb_is_refused_from_its_header() -> None:
    with pytest.raises(ImageTooLarge, match="40000 x 1000 pixels, more than 1000000 allowed"):
        open_image(png_header(40000, 1000), max_pixels=1_000_000)
    with pytest.raises(ImageTooLarge, match=r"data\.max_pixels"):
        open_image(png_header(60000, 60000))


def test_a_strip_that_resizing_would_blow_up_is_refused() -> None:
    with pytest.raises(ImageTooLarge, match="1 x 201 pixels: one side is more than 200 times the other"):
        open_image(encoded(Image.new("RGB", (1, 201))))
    assert open_image(encoded(Image.new("RGB", (400, 2)))).size == (400, 2)


def damaged(name: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    jpeg, png = encoded(Image.fromarray(noise), "JPEG"), encoded(Image.fromarray(noise))
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[: len(png) // 2],
        "flipped bytes": png[:200] + bytes(255 - byte for byte in png[200:400]) + png[400:],
        "only a header": png_header(8, 8),
    }[name]


@pytest.mark.parametrize(
    "name", ["empty", "text", "postscript", "truncated jpeg", "truncated png", "flipped bytes", "only a header"]
)
def test_damaged_files_are_broken_images_and_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(damaged(name))
    with pytest.raises(ImageBroken, match=r"x\.jpg.*cannot be decoded"):
        open_image(path)


def test_a_missing_file_and_a_folder() -> None:
    with pytest.raises(ImageMissing, match=r"/gone\.jpg"):
        open_image("/gone.jpg")
    with pytest.raises(ImageBroken):
        open_image("/")
    with pytest.raises(DataError):
        open_image("/gone.jpg")


def test_check_fills_sizes_and_reports_each_bad_file(tmp_path: Path, write_picture) -> None:
    write_picture(tmp_path / "good.png", (9, 7))
    write_picture(tmp_path / "large.png", (80, 80))
    (tmp_path / "broken.jpg").write_bytes(damaged("truncated jpeg"))
    names = ["good.png", "large.png", "broken.jpg", "gone.png"]
    records = [ImageRecord(name, str(tmp_path / name), "train") for name in names] + [ImageRecord("words", None, "dev")]
    report, seen = InputReport("all"), []
    good = check_images(records, report, max_pixels=5000, progress=lambda done, total: seen.append((done, total)))
    assert [(record.image_id, record.width, record.height) for record in good] == [("good.png", 9, 7), ("words", 0, 0)]
    assert len(good[0].digest) == 32
    assert seen[-1] == (5, 5)
    assert {fault.where: fault.kind for fault in report.faults} == {
        "large.png": "image_too_large", "broken.jpg": "image_broken", "gone.png": "image_missing",
    }  # fmt: skip
    strict = InputReport()
    check_images(records, strict, max_pixels=5000)
    with pytest.raises(DataError, match=r"1 image_too_large.*1 image_broken.*1 image_missing"):
        strict.raise_if_refused()
