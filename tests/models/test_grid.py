"""GridWindow of a grid: pooling against torch's, windows and mirrors by hand, the draw's reach and its independence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raycap.errors import RecipeError
from raycap.models.grid import pool_grid, random_windows, side_of, window_matrix


def numbered(side: int, images: int = 1) -> Tensor:
    """Cell r, c of image b holds (b, r, c)."""
    cells = [[[b, r, c] for r in range(side) for c in range(side)] for b in range(images)]
    return torch.tensor(cells, dtype=torch.float32)


@pytest.mark.parametrize(("side", "out"), [(9, 5), (7, 4), (6, 3), (4, 4), (3, 1), (2, 3)])
def test_pooling_is_adaptive_average_pooling(side: int, out: int) -> None:
    grid = torch.randn(2, side * side, 5, generator=torch.Generator().manual_seed(0))
    picture = grid.transpose(1, 2).reshape(2, 5, side, side)
    expected = torch.nn.functional.adaptive_avg_pool2d(picture, out).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_grid(grid, out), expected)


def test_a_window_holds_its_cells_and_no_others() -> None:
    seen = window_matrix(4, 2, 1, 2, 2, False) @ numbered(4)[0]
    assert seen[:, 1:].tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    mirrored = window_matrix(4, 2, 1, 2, 2, True) @ numbered(4)[0]
    assert mirrored[:, 1:].tolist() == [[1, 3], [1, 2], [2, 3], [2, 2]]


def test_a_window_outside_the_grid_is_refused() -> None:
    with pytest.raises(RecipeError, match="crop = 3"):
        window_matrix(3, 2, 0, 0, 0, False)
    with pytest.raises(RecipeError, match="crop = 3"):
        window_matrix(3, 2, 2, 0, 2, False)


def test_a_grid_that_is_not_square_is_refused() -> None:
    assert side_of(49) == 7
    with pytest.raises(RecipeError, match=r"6 cells.*grid_size"):
        side_of(6)


def test_every_view_is_drawn_and_none_beyond_the_crop() -> None:
    grid, seen = numbered(3), set()
    for position in range(400):
        view = random_windows(grid, 2, crop=1, flip=True, seed=5, step=0, positions=[position])[0, :, 1:]
        seen.add(tuple(map(tuple, view.tolist())))
    windows = {
        tuple(map(tuple, (window_matrix(3, 2, top, left, side, mirrored) @ grid[0])[:, 1:].tolist()))
        for side, top, left in [(3, 0, 0), (2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]
        for mirrored in (False, True)
    }
    assert seen == windows


def test_without_flip_nothing_is_mirrored() -> None:
    for position in range(50):
        view = random_windows(numbered(3), None, crop=2, flip=False, seed=1, step=2, positions=[position])
        columns = view[0, :, 2].view(3, 3)
        assert bool((columns[:, 1:] >= columns[:, :-1]).all())


def test_a_view_hangs_on_seed_step_and_position_alone() -> None:
    grid = torch.randn(3, 25, 4, generator=torch.Generator().manual_seed(1))
    options = {"crop": 2, "flip": True, "seed": 9, "step": 4}
    together = random_windows(grid, 3, **options, positions=[11, 12, 13])
    alone = random_windows(grid[1:2], 3, **options, positions=[12])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)
    for change in ({"seed": 10}, {"step": 5}):
        others = [random_windows(grid[:1], 3, **{**options, **change}, positions=[p]) for p in range(8)]
        mine = [random_windows(grid[:1], 3, **options, positions=[p]) for p in range(8)]
        assert any(not torch.equal(a, b) for a, b in zip(mine, others, strict=True))
