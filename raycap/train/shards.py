"""Tensors of which each rank keeps a part (FSDP2's), beside plain ones: put together, taken apart, filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded. Every rank takes its part; nothing is sent."""
    target.copy_(_like(value, target))


def gathered(state: Any, *, keep: bool) -> Any:
    """A state of nested dicts and lists with all its tensors whole, on the CPU. All ranks must ask, one after another
    tensor is put together.

    Args:
        keep: whether this rank wants them; None stands in their places where not.
    """
    if isinstance(state, Tensor):
        found = whole(state.detach())
        return found.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gathered(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep=keep) for value in state)
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state: what is of a parameter's shape is sharded as the parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {
        number: {key: _like(value, parameters[number]) if _is_of(value, parameters[number]) else value
                 for key, value in values.items()}
        for number, values in state["state"].items()
    }  # fmt: skip
    optimizer.load_state_dict({**state, "state": held})


def _like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, or this rank's part of it where the target is sharded."""
    if not isinstance(target, DTensor):
        return value
    there = value.to(target.device)
    return distribute_tensor(there, target.device_mesh, target.placements, src_data_rank=None)


def _is_of(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
