"""Matrix products of linear layers on a processor, by oneDNN.

torch hands float32 products to MKL, which leaves the widest instructions of processors of other makers unused, and lays
the weights out anew in every call. oneDNN, which is in torch too, uses them, and takes weights that were laid out once:
that is what decoding, with its few rows a product, gains most by (docs/performance.md has figures). On a GPU, in other
types and under autocast products stay torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as torch_linear
from transformers.pytorch_utils import Conv1D

PIECE = 4096
"""Words of an output layer that are multiplied at a time."""
_ROWS = 192  # for which weights are laid out; they serve any number
_PLAIN = (Tensor, nn.Parameter)
_lock = Lock()


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows · weightᵀ + bias, with gradients: rows [..., I], weight [O, I], bias [O] → [..., O]."""
    if not _by_onednn(rows, weight):
        return torch_linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1])
    return _Linear.apply(flat, weight, bias).view(*rows.shape[:-1], len(weight))


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """left · right without gradients: [N, I] and [I, O] → [N, O]."""
    return onednn_linear(left, right.T, None) if _by_onednn(left, right) else torch.mm(left, right)


def laid_out(weight: Tensor) -> Tensor | None:
    """A weight [O, I] as oneDNN wants it, for `onednn_linear`; None where it is not for oneDNN."""
    if not _by_onednn(weight, weight):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


def onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows · weightᵀ + bias without gradients, float32 [..., I] → [..., O]; `weight` [O, I] plain or `laid_out`."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class OneDNNLinear(nn.Linear):
    """A linear layer whose products are `linear`'s, or of the laid out weight while there is one."""

    ready: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.ready is not None:
            return onednn_linear(input, self.ready, self.bias)
        return linear(input, self.weight, self.bias)

    def lay_out(self) -> Tensor | None:
        return laid_out(self.weight)


class OneDNNHead(nn.Linear):
    """An output layer; laid out in pieces of `PIECE` words, for a readout that takes a few words at a time."""

    ready: list[Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def lay_out(self) -> list[Tensor] | None:
        return pieces(self.weight)


def pieces(weight: Tensor) -> list[Tensor] | None:
    """An output layer's weight [V, H], laid out `PIECE` words at a time; None where it is not for oneDNN."""
    made = [laid_out(words) for words in weight.detach().split(PIECE)]
    return None if made[0] is None else [words for words in made if words is not None]


class OneDNNConv1D(Conv1D):
    """The same of GPT-2's layer, which keeps its weight the other way round, [I, O]."""

    ready: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ready is not None:
            return onednn_linear(x, self.ready, self.bias)
        return linear(x, self.weight.T, self.bias)

    def lay_out(self) -> Tensor | None:
        return laid_out(self.weight.T)


_BETTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def use_onednn(module: nn.Module, head: nn.Module | None = None) -> None:
    """Change the linear layers inside to such as use oneDNN; parameters and their names stay.

    Layers of other kinds that are derived from them (quantised, low-rank) are left alone.

    Args:
        head: the output layer.
    """
    if type(head) is nn.Linear:
        head.__class__ = OneDNNHead
    for layer in module.modules():
        if type(layer) in _BETTER:
            layer.__class__ = _BETTER[type(layer)]


@contextmanager
def laid_out_once(module: nn.Module) -> Iterator[None]:
    """Inside, products of the layers that `use_onednn` changed take weights that are laid out once, on entry.

    Weights must not change inside, and there are no gradients. Several threads may be inside.
    """
    layers: list[Any] = [each for each in module.modules() if isinstance(each, (*_BETTER.values(), OneDNNHead))]
    with _lock:
        inside = getattr(module, "_inside", 0)
        if not inside:
            for layer in layers:
                layer.ready = layer.lay_out()
        module._inside = inside + 1  # type: ignore[assignment]
    try:
        yield
    finally:
        with _lock:
            module._inside -= 1  # type: ignore[assignment, operator]
            if not module._inside:
                for layer in layers:
                    layer.ready = None


def _by_onednn(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and rows.device.type == weight.device.type == "cpu"
        and type(rows) in _PLAIN
        and type(weight) in _PLAIN  # a sharded weight multiplies itself
        and rows.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return onednn_linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.T, None) if of_rows else None,
            onednn_linear(gradient.T, rows.T, None) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )
