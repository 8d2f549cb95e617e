"""The captioner that learns, whole on every rank or in shards (FSDP2, Zhao et al. 2023, "PyTorch FSDP").

Whole: every rank has all parameters, and gradients are added up in one buffer (`train.group`). Sharded: each rank keeps
its part of parameters, gradients and optimizer, and a block is put together while it computes. What is published,
looked at and saved is a plain captioner on rank 0 in either case, so a checkpoint of one resumes as the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner

METHODS = ("encode", "score", "score_with_entropy")


def shard(captioner: PrefixCaptioner) -> None:
    """Shard a captioner in place over all ranks of the default process group: its LM's blocks one by one, the rest
    together.

    Gradients come out summed over ranks, not averaged: losses are divided by whole-step counts.

    Raises:
        RecipeError: the LM does not say what its blocks are.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
    from transformers.modeling_layers import GradientCheckpointingLayer

    kind = next(captioner.parameters()).device.type
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    blocks = [module for module in captioner.lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise RecipeError("this LM does not say what its blocks are", key="cluster.learner_sharding", value="fsdp",
                          remedy="set it to none")  # fmt: skip
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(captioner, mesh=mesh)
    for method in METHODS:
        register_fsdp_forward_method(captioner, method)
    for module in captioner.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, sharded or not; for a sharded one all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, sharded as the target is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


class Kept:
    """The captioner as others see it: itself where it is whole, a plain copy on rank 0 where it is sharded.

    Args:
        learning: the captioner that learns.
        plain: a plain captioner of the same architecture, on rank 0 of a sharded run; None elsewhere.
    """

    def __init__(self, learning: PrefixCaptioner, plain: PrefixCaptioner | None, *, sharded: bool) -> None:
        self.learning, self.sharded = learning, sharded
        self.seen = plain if sharded else learning

    @torch.no_grad()
    def collect(self, values: Mapping[str, Tensor] | None = None) -> PrefixCaptioner | None:
        """The captioner with its weights of now, or with others such as averages; all ranks must ask.

        Returns:
            None on ranks above 0 of a sharded run.
        """
        if not self.sharded:
            return self.learning
        own = dict(self.seen.named_parameters()) if self.seen is not None else {}
        for name, parameter in self.learning.named_parameters():
            full = whole(parameter if values is None or name not in values else values[name])
            if own:
                own[name].copy_(full)
        return self.seen


def gathered(state: Any) -> Any:
    """A state of nested dicts and lists with all its tensors whole; all ranks must ask."""
    return _mapped(state, whole)


def _mapped(state: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _mapped(value, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(value, change) for value in state)
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole optimizer state: each tensor that is as large as its parameter is sharded as that is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = copy.copy(dict(state))
    sharded["state"] = {
        number: {key: like(value, parameters[number]) if _is_of(value, parameters[number]) else value
                 for key, value in values.items()}
        for number, values in state["state"].items()
    }  # fmt: skip
    optimizer.load_state_dict(sharded)


def _is_of(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


@torch.no_grad()
def fill(targets: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Copy whole tensors into parameters, sharded or not."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(like(value, target))
