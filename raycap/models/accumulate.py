"""Gradients of large tables, added to what is there already instead of made beside it.

The gradient of an embedding or an output layer is as large as the layer, and each small batch of a step would make one
of its own only to have it added to the sum. Inside `in_place()` such a gradient goes straight into the parameter's
`.grad`, once there is one, and autograd is told that nothing is left to add.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Of this thread: the processor's part of a backward pass runs in the thread that called for it.
_asked = threading.local()


@contextmanager
def in_place() -> Iterator[None]:
    """Around the `backward()` of a loop that sums gradients over small batches.

    Not around `torch.autograd.grad`, which would find these gradients missing and the parameters' `.grad` changed.
    """
    before, _asked.for_ = getattr(_asked, "for_", False), True
    try:
        yield
    finally:
        _asked.for_ = before


def sum_of(parameter: Tensor) -> Tensor | None:
    """The parameter's gradient so far, to add to; None where the gradient must be left to autograd: nobody said
    `in_place()`, there is none yet, it lies elsewhere or is of another type, or somebody waits for it with a hook."""
    plain = type(parameter) is nn.Parameter and parameter.is_leaf and parameter.device.type == "cpu"
    if not (getattr(_asked, "for_", False) and plain) or parameter.grad is None:
        return None
    hooked = parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    return None if hooked or parameter.grad.dtype != torch.float32 else parameter.grad


class SummingEmbedding(nn.Embedding):
    """An embedding whose gradient can go straight into the sum."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.device.type != "cpu" or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        return _Lookup.apply(input, self.weight, self.padding_idx)


def use_summing(module: nn.Module) -> None:
    """Change the plain embeddings inside; parameters and their names stay."""
    for layer in module.modules():
        if type(layer) is nn.Embedding and _is_plain(layer):
            layer.__class__ = SummingEmbedding


def _is_plain(layer: nn.Embedding) -> bool:
    return layer.max_norm is None and not layer.sparse and not layer.scale_grad_by_freq


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.padding = padding
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        tokens, weight = ctx.saved_tensors
        into = sum_of(weight)
        tokens, rows = tokens.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:  # as torch does it: what stands for nothing is not learned
            read = tokens != ctx.padding
            tokens, rows = tokens[read], rows[read]
        with torch.no_grad():
            found = torch.zeros_like(weight) if into is None else into
            found.index_add_(0, tokens, rows.to(found.dtype))
        return None, found if into is None else None, None
