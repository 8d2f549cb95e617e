"""A grid of feature cells seen through a window: pooled to fewer cells, cropped, mirrored; each a small matrix.

Cropping and mirroring the cells of a frozen encoder's output is the cheap relative of cropping and mirroring the
photograph: the encoder need not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.errors import RecipeError

WINDOW_STREAM = 3  # of the seeds, see train.seeding


def side_of(cells: int) -> int:
    """Cells a side of a square grid of `cells` cells.

    Raises:
        RecipeError: the grid is not square.
    """
    side = round(cells**0.5)
    if side * side != cells:
        raise RecipeError("the grid is not square: its cells cannot be pooled, cropped or mirrored", key="features",
                          value=f"{cells} cells", remedy="unset grid_size, crop and flip")  # fmt: skip
    return side


@lru_cache(maxsize=4096)
def window_matrix(side: int, out: int, top: int, left: int, window: int, mirrored: bool) -> Tensor:
    """Mean of each of out × out parts of a window of a side × side grid: float32 [out², side²].

    Parts overlap where the window does not divide evenly, as in adaptive average pooling.
    """
    rows, columns = _means(side, out, top, window), _means(side, out, left, window)
    if mirrored:
        columns = columns[::-1]
    return torch.from_numpy(np.kron(rows, columns).astype(np.float32))


def _means(side: int, out: int, start: int, window: int) -> NDArray[np.float64]:
    """Mean over each of `out` parts of a stretch of cells: [out, side]."""
    if window < 1 or start + window > side:
        raise RecipeError(f"the window {start}..{start + window} lies outside the grid", key="crop",
                          value=side, remedy="crop fewer cells than the grid has a side")  # fmt: skip
    matrix = np.zeros((out, side))
    for part in range(out):
        low, high = part * window // out, -(-(part + 1) * window // out)
        matrix[part, start + low : start + high] = 1 / (high - low)
    return matrix


def pool_grid(features: Tensor, out: int) -> Tensor:
    """The whole grid in out × out cells: [B, G, D] → [B, out², D]."""
    side = side_of(features.shape[1])
    if side == out:
        return features
    return window_matrix(side, out, 0, 0, side, False).to(features) @ features


def random_windows(
    features: Tensor, out: int | None, *, crop: int, flip: bool, seed: int, step: int, positions: Sequence[int]
) -> Tensor:
    """A random window of each image's grid, up to `crop` cells smaller than the whole, mirrored half the time.

    Args:
        features: [B, G, D].
        out: cells a side of what is returned; as many as the grid has when None.
        positions: length B; the window is a function of (seed, step, position), whoever asks.

    Returns:
        [B, out², D].
    """
    side = side_of(features.shape[1])
    matrices = [_random_window(side, out or side, crop, flip, seed, step, position) for position in positions]
    return torch.stack(matrices).to(features) @ features


def _random_window(side: int, out: int, crop: int, flip: bool, seed: int, step: int, position: int) -> Tensor:
    key = np.random.SeedSequence([seed, WINDOW_STREAM, step, position])
    random = np.random.Generator(np.random.Philox(key))
    smaller = int(random.integers(crop + 1))
    top, left = (int(v) for v in random.integers(smaller + 1, size=2))
    return window_matrix(side, out, top, left, side - smaller, flip and bool(random.integers(2)))
