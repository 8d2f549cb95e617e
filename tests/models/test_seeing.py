"""What captioners do with features first: shapes that fit pass, a grid is pooled, windows are drawn on request."""

from __future__ import annotations

import pytest
import torch

from raycap.errors import RecipeError
from raycap.models.grid import random_windows
from raycap.models.seeing import FeatureConfig, SeesFeatures


def seeing(features: str, grid_size: int = 0) -> SeesFeatures:
    made = SeesFeatures()
    made.config = FeatureConfig(features=features, feature_dim=3, grid_size=grid_size)
    return made


GRID = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))


def test_features_that_fit_come_as_they_are() -> None:
    assert seeing("grid").cells(GRID) is GRID
    pooled = GRID[:, 0]
    assert seeing("pooled").cells(pooled) is pooled
    assert seeing("pooled", grid_size=2).cells(pooled) is pooled  # of one cell there is nothing to pool


def test_a_grid_is_pooled_to_its_size_by_hand() -> None:
    """Sixteen cells in four: cell 0 is the mean of cells 0, 1, 4 and 5, the upper left corner."""
    cells = seeing("grid", grid_size=2).cells(GRID)
    assert cells.shape == (2, 4, 3)
    for cell, corner in enumerate((0, 2, 8, 10)):
        expected = GRID[:, [corner, corner + 1, corner + 4, corner + 5]].mean(dim=1)
        torch.testing.assert_close(cells[:, cell], expected)


@pytest.mark.parametrize(
    ("features", "shape"), [("grid", (2, 16, 4)), ("grid", (2, 3)), ("pooled", (2, 4)), ("pooled", (2, 16, 3))]
)
def test_features_that_do_not_fit_are_refused(features: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=f"{features} features of width 3") as refused:
        seeing(features).cells(torch.zeros(shape))
    assert (refused.value.key, refused.value.value) == ("features", shape)
    assert refused.value.remedy == "extract the features it was trained with"


def test_a_grid_that_is_not_square_cannot_be_pooled() -> None:
    with pytest.raises(RecipeError, match="15 cells"):
        seeing("grid", grid_size=2).cells(GRID[:, :15])


def test_windows_come_in_the_captioner_s_size_and_only_when_asked_for() -> None:
    drawn = {"seed": 3, "step": 1, "positions": [5, 6]}
    assert seeing("grid", grid_size=2).windows(GRID, crop=0, flip=False, **drawn) is GRID
    for size, cells in ((2, 4), (0, 16)):
        seen = seeing("grid", grid_size=size).windows(GRID, crop=1, flip=True, **drawn)
        assert seen.shape == (2, cells, 3)
        assert torch.equal(seen, random_windows(GRID, size or None, crop=1, flip=True, **drawn))


def test_a_config_is_written_down_whole() -> None:
    assert seeing("grid", 5).config.to_dict() == {"features": "grid", "feature_dim": 3, "grid_size": 5}
