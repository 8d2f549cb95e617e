"""What all captioners share: what features they take (shape, pooling, windows), and how they get ready to decode."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.grid import pool_grid, random_windows
from raycap.models.products import laid_out_once


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Of the features that a captioner was built for.

    Attributes:
        features: `grid` [G, D] or `pooled` [D].
        feature_dim: D.
        grid_size: a grid is pooled to this many cells a side; 0 leaves it as it comes.
    """

    features: str
    feature_dim: int
    grid_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SeesFeatures(nn.Module):
    """Base of captioners: their config says what features they take."""

    config: FeatureConfig

    def decoding(self) -> AbstractContextManager[None]:
        """While captions are made, and weights do not change: products take weights that are laid out once."""
        return laid_out_once(self)

    def cells(self, features: Tensor) -> Tensor:
        """Features [B, D] or [B, G, D] as the captioner takes them: a grid pooled to `grid_size`² cells.

        Raises:
            RecipeError: they are not of the shape that it was built for.
        """
        config = self.config
        expected = 2 if config.features == "pooled" else 3
        if features.dim() != expected or features.shape[-1] != config.feature_dim:
            raise RecipeError(
                f"the captioner was built for {config.features} features of width {config.feature_dim}",
                key="features", value=tuple(features.shape), remedy="extract the features it was trained with",
            )  # fmt: skip
        return pool_grid(features, config.grid_size) if config.grid_size and expected == 3 else features

    def windows(
        self, features: Tensor, *, crop: int, flip: bool, seed: int, step: int, positions: Sequence[int]
    ) -> Tensor:
        """A random window of each image's grid to train on; the features themselves without crop and flip.

        Args:
            features: [B, D] or [B, G, D].
            positions: length B; a window is a function of (seed, step, position).
        """
        if not (crop or flip):
            return features
        size = self.config.grid_size or None
        return random_windows(features, size, crop=crop, flip=flip, seed=seed, step=step, positions=positions)
