"""Gradients of embeddings and output layers, added to what is there already instead of made beside it.

Such a gradient is as large as its table, and each small batch of a step would make one only to have it added to the
sum. Inside `in_place()` it goes straight into the parameter's `.grad`, and autograd is told that nothing is left to
add. That is so from the second small batch on (the first one makes the sum), on a processor, for float32 parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Of this thread: the processor's part of a backward pass runs in the thread that called for it.
_asked = threading.local()


@contextmanager
def in_place() -> Iterator[None]:
    """Around the plain `backward()` of a loop that sums gradients over small batches, one thread a model.

    Not around `torch.autograd.grad` or `backward(inputs=...)`: these gradients would be missing there, and the
    parameters' `.grad` changed.
    """
    before, _asked.for_ = getattr(_asked, "for_", False), True
    try:
        yield
    finally:
        _asked.for_ = before


def sum_of(parameter: Tensor) -> Tensor | None:
    """The parameter's gradient so far, of its shape, to add to; None where the gradient must be left to autograd.

    That is: outside `in_place()`, for the first small batch, on a GPU, for parameters of another type than float32 or
    of a class of their own (sharded ones), and where a hook of the parameter waits for its gradient.
    """
    if not getattr(_asked, "for_", False) or type(parameter) is not nn.Parameter or parameter.grad is None:
        return None
    hooked = parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    fits = parameter.device.type == "cpu" and parameter.grad.dtype == torch.float32
    return parameter.grad if fits and not hooked else None


class SummingEmbedding(nn.Embedding):
    """An embedding whose gradient can go straight into the sum: tokens int64 [...] → rows [..., H]."""

    def forward(self, input: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not learns or self.weight.device.type != "cpu" or type(self.weight) is not nn.Parameter:
            return super().forward(input)
        return _Lookup.apply(input, self.weight, self.padding_idx)


def use_summing(module: nn.Module) -> None:
    """Change the plain embeddings inside; parameters and their names stay."""
    for layer in module.modules():
        plain = type(layer) is nn.Embedding and layer.max_norm is None
        if plain and not layer.sparse and not layer.scale_grad_by_freq:
            layer.__class__ = SummingEmbedding


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.parameter, ctx.padding = weight, padding
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        (tokens,) = ctx.saved_tensors
        into = sum_of(ctx.parameter)
        tokens, rows = tokens.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:  # as torch does it: what stands for nothing is not learned
            read = tokens != ctx.padding
            tokens, rows = tokens[read], rows[read]
        found = torch.zeros_like(ctx.parameter) if into is None else into
        found.index_add_(0, tokens, rows.to(found.dtype))
        return None, found if into is None else None, None
