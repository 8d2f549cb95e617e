"""Frozen encoders: from pictures to the features that captioners read. timm models, and the image tower of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.clip import Clip, clip_of
from raycap.models.efficientnet_lite import load_lite_weights, package_weights
from raycap.models.loading import UNREADABLE
from raycap.recipe import ClipModelRecipe, FeaturesRecipe


class Encoder(Protocol):
    """Pictures to features; `source` names the encoder in metadata and checkpoints."""

    source: str

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float32 [N, G, D] (grid) or [N, D] (pooled), on the CPU."""
        ...


def cells(grid: Tensor, side: int | None) -> Tensor:
    """[N, D, h, w] → [N, G, D], average-pooled to side × side cells when a side is given."""
    if side is not None and grid.shape[-1] != side:
        grid = nn.functional.adaptive_avg_pool2d(grid, side)
    return grid.flatten(2).transpose(1, 2).contiguous()


class TimmEncoder:
    """A timm backbone with ImageNet weights.

    Args:
        model: timm's name.
        weights: `package:NAME`, a file, or empty for timm's own (from its hub).
        kind: `grid` (last feature map) or `pooled` (its average).
        grid_size: pool the grid to this many cells a side.
        image_size: pixels a side; what the model was trained at unless given.
        levels: feature maps that are joined, from the last one back. What a network says last is what things are
            called; which colour they have and where they lie is plainer one map before.
    """

    def __init__(
        self, model: str, weights: str, *, kind: str, grid_size: int | None, image_size: int | None = None,
        levels: int = 1, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.kind, self.grid_size, self.device = kind, grid_size, device
        self.source = ":".join(
            ["timm", model, weights or "timm", kind]
            + [str(grid_size)] * (grid_size is not None)
            + [f"{image_size}px"] * (image_size is not None)
            + [f"{levels} levels"] * (levels > 1)
        )
        self.model, self.transform = _timm_model(model, weights, image_size)
        self.finer = finer_maps(self.model, model, levels)
        self.model = self.model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self.transform(picture) for picture in pictures]).to(self.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.finer:
            last, maps = self.model.forward_intermediates(pixels, indices=self.finer)
            grid = joined(last.float(), [m.float() for m in maps])
        else:
            grid = self.model.forward_features(pixels).float()
        if grid.dim() == 3:  # Vision Transformers give tokens: leave class and register tokens out
            grid = grid[:, getattr(self.model, "num_prefix_tokens", 0) :].transpose(1, 2)
            side = round(grid.shape[-1] ** 0.5)
            grid = grid.reshape(*grid.shape[:2], side, side)
        if self.kind == "pooled":
            return grid.mean(dim=(2, 3)).cpu()
        return cells(grid, self.grid_size).cpu()


def finer_maps(model: Any, name: str, levels: int) -> list[int]:
    """Indices (timm's, finest first) of the feature maps that `levels` joins to the last one; none for 1.

    Raises:
        RecipeError: the model has not that many maps of different strides, as a Vision Transformer.
    """
    if levels == 1:
        return []
    strides = [int(info["reduction"]) for info in getattr(model, "feature_info", [])]
    deepest = {stride: index for index, stride in enumerate(strides)}  # of each stride the last map
    wanted = sorted(deepest)[-levels:-1]
    if len(wanted) < levels - 1 or not hasattr(model, "forward_intermediates"):
        raise RecipeError(f"{name} has {max(1, len(deepest))} feature maps of different strides", key="features.levels",
                          value=levels, remedy="join fewer, or take a convolutional network")  # fmt: skip
    return [deepest[stride] for stride in wanted]


def joined(last: Tensor, finer: Sequence[Tensor]) -> Tensor:
    """The last map [N, D, h, w] with the finer ones averaged to its cells behind it: [N, D + ΣC, h, w]."""
    side = (last.shape[2], last.shape[3])
    return torch.cat([last, *(nn.functional.adaptive_avg_pool2d(m, side) for m in finer)], dim=1)


class ClipEncoder:
    """The image tower of a CLIP: its embedding (pooled), or its last layer's grid."""

    def __init__(self, clip: Clip, *, kind: str, grid_size: int | None) -> None:
        self.clip, self.kind, self.grid_size = clip, kind, grid_size
        self.source = f"clip:{clip.name}:{kind}" + (f":{grid_size}" if grid_size else "")

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self.clip.pixels(pictures)
        if self.kind == "pooled":
            return torch.from_numpy(self.clip.embed_pixels(pixels))
        return cells(self.clip.grid(pixels), self.grid_size).cpu()


def build_encoder(
    recipe: FeaturesRecipe, clip: ClipModelRecipe | None, trained_clip: Path | None, device: str = "cpu"
) -> Encoder:
    """The encoder that a recipe names.

    Args:
        clip: `clip.reward`, for encoder = "clip.reward".
        trained_clip: its folder when it was trained here.
    """
    if recipe.encoder != "clip.reward":
        return TimmEncoder(recipe.encoder, recipe.weights, kind=recipe.kind, grid_size=recipe.grid_size,
                           image_size=recipe.image_size, levels=recipe.levels, device=device)  # fmt: skip
    if recipe.image_size is not None:
        raise RecipeError("a CLIP's size is given by its model", key="features.image_size", value=recipe.image_size,
                          remedy="leave it null, or take a timm model")  # fmt: skip
    if recipe.levels > 1:
        raise RecipeError("a CLIP's image tower has one feature map", key="features.levels", value=recipe.levels,
                          remedy="leave it at 1, or take a timm model")  # fmt: skip
    if clip is None:
        raise RecipeError("is not set, but the features come from it", key="clip.reward")
    return ClipEncoder(clip_of(clip, trained_clip, device), kind=recipe.kind, grid_size=recipe.grid_size)


def check_timm_name(model: str) -> None:
    """Raises RecipeError where timm has no model of that name."""
    import timm

    if not timm.is_model(model.split(".")[0]):
        raise RecipeError("no such timm model", key="features.encoder", value=model,
                          remedy="see timm.list_models(), or take clip.reward")  # fmt: skip


def _timm_model(model: str, weights: str, image_size: int | None) -> tuple[Any, Any]:
    import timm
    from timm.data import create_transform, resolve_data_config

    check_timm_name(model)
    package = weights.removeprefix("package:") if weights.startswith("package:") else ""
    options: dict[str, Any] = {"img_size": image_size} if image_size and _wants_size(model) else {}
    if weights and not package:  # timm's own way in: it fits position embeddings to another picture size
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        built = timm.create_model(model, pretrained=not package, num_classes=1000 if weights else 0, **options)
    except UNREADABLE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecipeError(f"its weights cannot be loaded: {why}", key="features.weights",
                          value=weights or "timm", remedy="give a weights file or package:NAME, or run where the hub "
                          "is reachable") from error  # fmt: skip
    if package:
        load_lite_weights(built, package_weights(package))
    config = resolve_data_config({}, model=built)
    if package.startswith("efficientnet_lite"):
        # these weights want x/127.5 − 1 and the whole picture
        config |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0, "crop_mode": "squash"}
    if image_size:
        config["input_size"] = (3, image_size, image_size)
    return built, create_transform(**config, is_training=False)


def _wants_size(model: str) -> bool:
    """Whether the model is built for one size (Vision Transformers), where convolutions take any."""
    import timm

    return bool(timm.get_pretrained_cfg_value(model, "fixed_input_size"))
