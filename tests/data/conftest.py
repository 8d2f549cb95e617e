"""Small pictures and folders for the tests of the data room."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("raycap", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("raycap")

WritePicture = Callable[..., Path]


@pytest.fixture
def write_picture() -> WritePicture:
    """write_picture(path, size=(8, 6), color=...) writes a PNG or JPEG, by the suffix, and returns the path."""

    def write(path: Path, size: tuple[int, int] = (8, 6), color: tuple[int, int, int] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(map(ord, path.name))
        Image.new("RGB", size, color or (shade % 256, shade * 7 % 256, shade * 13 % 256)).save(path)
        return path

    return write


@pytest.fixture
def flickr8k(tmp_path: Path, write_picture: WritePicture) -> Path:
    """A tiny Flickr8k: 3 train, 2 dev, 1 test photographs with two captions each, as the published files look."""
    root = tmp_path / "flickr8k"
    lists = {"train": ["10_a.jpg", "0012_b.jpg", "30_c.jpg"], "dev": ["40_d.jpg", "50_e.jpg"], "test": ["60_f.jpg"]}
    lines = ["99_gone.jpg.1#0\tpeople waiting for the subway"]
    for split, names in lists.items():
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / f"Flickr_8k.{split}Images.txt").write_text("".join(name + "\n" for name in names))
        for name in names:
            write_picture(root / "images" / name)
            lines += [f"{name}#0\tA dog runs in {name[0]} .", f"{name}#1\tA brown dog , running ."]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def real_flickr8k() -> Path:
    """The real photographs, where they are: RAYCAP_SHARED, or ../shared beside the repository."""
    shared = Path(os.environ.get("RAYCAP_SHARED") or Path(__file__).parents[2].parent / "shared")
    root = shared / "flickr8k"
    if not (root / "Flickr8k.token.txt").is_file():
        pytest.skip(f"the real photographs are not at {root} (set RAYCAP_SHARED)")
    return root
