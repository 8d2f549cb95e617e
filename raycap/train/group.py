"""Ranks that learn together through torch.distributed: gradients are added up over all of them, in one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from raycap.train.optimizing import Whole


class DistributedGroup(Whole):
    """The default process group, which must be initialised (Ray Train does it). Every rank holds all that learns."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over ranks; losses are divided by whole-step counts beforehand."""
        trainable = [p for p in parameters if p.requires_grad]
        for p in trainable:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in trainable if p.grad is not None])
        dist.all_reduce(flat)
        offset = 0
        for p in trainable:
            assert p.grad is not None
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def sum_values(self, values: list[float]) -> list[float]:
        """Sum numbers over ranks, in float64."""
        backend_device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=backend_device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, in the order of the ranks."""
        texts: list[str] = [""] * self.size
        dist.all_gather_object(texts, text)
        return texts
