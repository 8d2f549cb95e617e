"""Low-rank adapters beside an LM's linear layers (LoRA, Hu et al. 2022, sec. 4.1), as peft has them.

A layer W x becomes W x + α/r · B A x. W stays as it came; A [r, I] is drawn and B [O, r] is zero, so that the first
policy is the LM itself. Layers are exchanged inside the LM, whose class and whose other parts stay: whoever calls the
LM, its body or its layers calls the adapters too. The output layer and the embeddings never get any, because a readout
multiplies by their weights itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from raycap.errors import RecipeError

_LINEAR = (nn.Linear, Conv1D)


def add_adapters(lm: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Sequence[str] | None) -> None:
    """Change a causal LM in place: its own parameters no longer learn, the adapters do. A is drawn from torch's global
    generator, layer by layer.

    Args:
        rank: r.
        alpha: α.
        dropout: on x in B A x, in training mode.
        targets: see `adapted_layers`.

    Raises:
        RecipeError: see `adapted_layers`; or peft has no adapter for such a layer.
    """
    names = adapted_layers(lm, targets)
    from peft import LoraConfig, inject_adapter_in_model

    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names,
                                "fan_in_fan_out": isinstance(lm.get_submodule(names[0]), Conv1D)}  # fmt: skip
    try:
        inject_adapter_in_model(LoraConfig(**settings), lm)
    except ValueError as error:
        given = {"rank": rank, "alpha": alpha, "dropout": dropout, "targets": targets}
        raise RecipeError(f"peft cannot adapt this LM: {error}", key="captioner.lora", value=given,
                          remedy="take other values or targets, or captioner.lm_tuning=frozen") from error  # fmt: skip


def adapted_layers(lm: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter, in the LM's own order.

    Args:
        targets: ends of such names, whole parts of them (`q_proj` or `self_attn.q_proj`); None: all linear layers of
            the LM's blocks.

    Raises:
        RecipeError: the LM has no such layers, or a target is none of them.
    """
    layers = _linear_layers(lm)
    if not layers:
        raise RecipeError("this LM has no blocks of linear layers that adapters could stand beside",
                          key="captioner.lm_tuning", value="lora", remedy="take full or frozen")  # fmt: skip
    found = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets or ()}
    if unknown := [target for target, names in found.items() if not names]:
        kinds = sorted({name.rpartition(".")[2] for name in layers})
        raise RecipeError(f"no linear layer of the LM's blocks is called {unknown[0]}", key="captioner.lora.targets",
                          value=list(targets or ()), remedy=f"take of {', '.join(kinds)}, or null for all")  # fmt: skip
    chosen = {name for names in found.values() for name in names}
    return [name for name in layers if targets is None or name in chosen]


def _linear_layers(lm: nn.Module) -> list[str]:
    """Inside the blocks: neither the output layer nor what stands before the first block or behind the last."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, None] = {}
    for name, block in lm.named_modules():
        if isinstance(block, GradientCheckpointingLayer):
            found |= {f"{name}.{inner}": None for inner, layer in block.named_modules() if isinstance(layer, _LINEAR)}
    return list(found)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


@torch.no_grad()
def merge_adapters(lm: nn.Module) -> None:
    """Change an LM in place: W + α/r · B A in the place of W, and no adapters any more.

    Raises:
        ValueError: what comes out is not finite.
    """
    from peft.tuners.lora import LoraLayer

    adapted: list[tuple[str, Any]] = [(name, m) for name, m in lm.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        lm.set_submodule(name, layer.get_base_layer())
    if hasattr(lm, "peft_config"):
        del lm.peft_config
