"""From an image's features to the LM's visual prefix (ClipCap, Mokady et al. 2021, sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMapping(nn.Module):
    """One prefix embedding a grid cell: normalise, project, drop out.

    Features [B, G, D] (or pooled [B, D], then G = 1) → prefix [B, G, H].
    """

    def __init__(self, feature_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim)
        self.project = nn.Linear(feature_dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 2:
            features = features[:, None]
        return self.project(self.dropout(self.norm(features)))


class MLPMapping(nn.Module):
    """Pooled features [B, D] → one hidden layer with tanh → prefix [B, P, H] (ClipCap's MLP). A grid is averaged."""

    def __init__(self, feature_dim: int, hidden: int, prefix_length: int) -> None:
        super().__init__()
        inner = hidden * prefix_length // 2
        self.prefix_length = prefix_length
        self.layers = nn.Sequential(nn.Linear(feature_dim, inner), nn.Tanh(), nn.Linear(inner, hidden * prefix_length))

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 3:
            features = features.mean(dim=1)
        return self.layers(features).view(features.shape[0], self.prefix_length, -1)


class TransformerMapping(nn.Module):
    """Features and P learned constants through a Transformer encoder; the constants' outputs are the prefix [B, P, H].

    Pooled features are first spread over `prefix_length` positions, as in ClipCap; grid features keep their cells.
    """

    def __init__(self, feature_dim: int, hidden: int, prefix_length: int, layers: int, heads: int, grid: bool) -> None:
        super().__init__()
        self.prefix_length, self.grid, self.hidden = prefix_length, grid, hidden
        self.project = nn.Linear(feature_dim, hidden if grid else hidden * prefix_length)
        self.constants = nn.Parameter(torch.randn(prefix_length, hidden) * 0.02)
        layer = nn.TransformerEncoderLayer(
            hidden, heads, dim_feedforward=2 * hidden, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, features: Tensor) -> Tensor:
        cells = self.project(features)
        if not self.grid:
            cells = cells.view(features.shape[0], self.prefix_length, self.hidden)
        constants = self.constants.expand(features.shape[0], -1, -1)
        return self.encoder(torch.cat([cells, constants], dim=1))[:, cells.shape[1] :]
