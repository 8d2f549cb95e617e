"""Random windows of a picture: inside it, of the asked size, mirrored half the time, and always the same ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raycap.data.picture_views import random_view


def coordinates(width: int, height: int) -> Image.Image:
    """Pixel x, y holds (x, y, 0)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(pixels)


@given(
    size=st.tuples(st.integers(1, 250), st.integers(1, 250)), area=st.floats(0.01, 1), seed=st.integers(0, 99),
    view=st.integers(1, 9),
)  # fmt: skip
def test_a_view_is_a_window_of_the_picture(size: tuple[int, int], area: float, seed: int, view: int) -> None:
    shown = np.asarray(random_view(coordinates(*size), area=area, seed=seed, image_id="a", view=view)).astype(int)
    height, width = shown.shape[:2]
    columns, rows = shown[0, :, 0], shown[:, 0, 1]
    mirrored = width > 1 and columns[0] > columns[1]
    np.testing.assert_array_equal(columns[::-1] if mirrored else columns, columns.min() + np.arange(width))
    np.testing.assert_array_equal(rows, rows[0] + np.arange(height))
    assert (shown[..., 0] == columns).all()
    assert (shown[..., 1] == rows[:, None]).all()
    # half a pixel of rounding a side
    assert (width + 0.5) * (height + 0.5) >= area * size[0] * size[1] - 0.5 * sum(size)


def test_shares_and_mirrors_are_drawn_evenly() -> None:
    picture = coordinates(240, 160)
    shown = [random_view(picture, area=0.4, seed=1, image_id=f"{n}.jpg", view=1) for n in range(600)]
    shares = np.array([s.width * s.height / (240 * 160) for s in shown])
    assert shares.min() == pytest.approx(0.4, abs=0.01)
    assert shares.max() == pytest.approx(1, abs=0.01)
    assert shares.mean() == pytest.approx(0.7, abs=0.03)
    stretched = np.array([(s.width / 240) / (s.height / 160) for s in shown])
    assert stretched.max() < 1.4
    assert stretched.min() > 0.7
    mirrored = np.mean([np.asarray(s)[0, 0, 0] > np.asarray(s)[0, 1, 0] for s in shown])
    assert mirrored == pytest.approx(0.5, abs=0.07)


def test_a_view_hangs_on_seed_name_and_number() -> None:
    picture = coordinates(200, 150)

    def shown(**other: object) -> bytes:
        return random_view(picture, **{"area": 0.3, "seed": 0, "image_id": "a", "view": 1, **other}).tobytes()  # type: ignore[arg-type]

    assert shown() == shown()
    assert len({shown(), shown(seed=1), shown(image_id="b"), shown(view=2)}) == 4


def test_a_whole_area_is_the_whole_picture() -> None:
    shown = random_view(coordinates(31, 17), area=1.0, seed=0, image_id="a", view=1)
    assert shown.size == (31, 17)
