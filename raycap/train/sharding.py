"""Ranks of which each keeps a part of the captioner that learns (FSDP2; Zhao et al. 2023, "PyTorch FSDP").

Parameters, gradients and the optimizer's state are cut into as many parts as there are ranks. A block of the LM is put
together where it computes, forwards and backwards, and its gradients are added up over the ranks as they are made. To
put a block together all ranks must be at it: every rank goes through the captioner equally often, and each pass through
every block (`PrefixCaptioner.score` sees to that). Who has nothing left to learn from goes along idly.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner
from raycap.train.group import DistributedGroup

METHODS = ("encode", "score", "score_with_entropy")
"""Ways into a captioner that learns. Captions are made by plain ones."""


class ShardingGroup(DistributedGroup):
    """The default process group; each rank holds its share of what learns, rank 0 a plain copy to show beside it.

    Args:
        device: of the shards.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.kind = torch.device(device).type

    def starts_on(self, device: str) -> str:
        """On the CPU: block by block it is moved and cut, and never whole where there is little room."""
        return "cpu"

    def shown(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        """On rank 0 a copy, on the CPU too."""
        return captioner if self.rank else copy.deepcopy(captioner)

    def still_copy(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        """Of all of it: each is cut up on its own."""
        return copy.deepcopy(captioner).requires_grad_(False)

    def hold(self, captioner: PrefixCaptioner) -> None:
        shard(captioner, self.kind)

    def idle_passes(self, mine: int) -> int:
        made = self.sum_values([float(mine * (rank == self.rank)) for rank in range(self.size)])
        return int(max(made)) - mine

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """They were added up as they were made; one that no rank had is 0, as it is of ranks that hold all."""
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def shard(captioner: PrefixCaptioner, kind: str) -> None:
    """Cut a captioner up in place among the ranks of the default process group, on devices of a kind: the blocks of its
    LM one by one, the rest together. What each rank has of it must be equal beforehand.

    Gradients come out summed over ranks and not averaged: losses are divided by whole-step counts.

    Raises:
        RecipeError: the LM does not say what its blocks are, or keeps a cache of its own: how often it is gone through
            hangs on the captions then.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in captioner.lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks or not captioner.shares_prefix:
        what = "keeps a cache of its own" if blocks else "does not say what its blocks are"
        raise RecipeError(f"this LM {what}", key="cluster.learner_sharding", value="fsdp", remedy="set it to none")
    # `encode` may return a view. Nobody writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for module in (*blocks, captioner):
        fully_shard(module, mesh=mesh)
    for module in captioner.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    learns = any(p.requires_grad for p in captioner.parameters())
    for name in METHODS:
        register_fsdp_forward_method(captioner, name)
        if not learns:
            setattr(captioner, name, _forgetting(captioner, getattr(captioner, name)))


def _forgetting(captioner: PrefixCaptioner, method: Callable[..., Any]) -> Callable[..., Any]:
    """FSDP writes down the blocks that a forward pass went through until a backward pass comes: here none will."""

    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        made = method(*arguments, **options)
        captioner.reset_iter_state()  # type: ignore[operator]
        return made

    return call


def idle_pass(captioner: PrefixCaptioner, features: FeatureStore) -> Tensor:
    """Through all of the captioner and out with 0, whose gradients are 0: ranks that still learn need us in it."""
    device = next(captioner.parameters()).device
    said = torch.zeros(1, 2, dtype=torch.int64, device=device)
    shown = captioner.encode(torch.zeros(1, *features.shape, device=device))
    return 0.0 * captioner.score(shown, said, torch.ones(1, 2, device=device)).sum()
