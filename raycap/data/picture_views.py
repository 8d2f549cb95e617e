"""Random views of a picture to train on: a window of it, mirrored half the time.

Few photographs are learned by heart through the one feature grid that each of them has. Windows of the picture
itself, encoded anew, are other grids of the same things; views of a stored grid (`raycap.models.grid`) cost nothing but
resemble each other.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from PIL import Image

PICTURE_STREAM = 4  # of the seeds, see train.seeding
_STRETCH = 4 / 3


def random_view(picture: Image.Image, *, area: float, seed: int, image_id: str, view: int) -> Image.Image:
    """A window of a picture, the same for the same (seed, image_id, view) on every machine.

    Args:
        area: smallest share of the picture's area, in (0, 1]; the window's share is uniform between it and 1, and its
            sides' ratio is up to 4/3 more or less than the picture's.
        view: number of the view, from 1.
    """
    digest = int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest())
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, PICTURE_STREAM, view, digest])))
    share = random.uniform(area, 1)
    stretch = math.exp(random.uniform(-math.log(_STRETCH), math.log(_STRETCH)))
    across = min(1.0, max(share, math.sqrt(share * stretch)))
    width, height = (max(1, round(s * n)) for s, n in zip((across, share / across), picture.size, strict=True))
    left, top = int(random.integers(picture.width - width + 1)), int(random.integers(picture.height - height + 1))
    window = picture.crop((left, top, left + width, top + height))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.integers(2) else window
