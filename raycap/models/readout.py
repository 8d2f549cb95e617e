"""From a captioner's hidden states to its words: a matrix product over the vocabulary, in as many pieces as one likes.

Whoever draws a token needs each row's logits once. All of them at a time are the largest array of decoding: taken in
blocks of words they stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raycap.models.accumulate import sum_of
from raycap.models.products import PIECE, linear, multiply, onednn_linear


@dataclass
class Readout:
    """Logits of the next token of N rows, not yet computed: hidden · weightᵀ + bias.

    Attributes:
        hidden: [N, H]; with `weight` None the logits themselves, [N, V].
        weight: [V, H].
        bias: [V].
        ready: the weight in `products.pieces`, while it is laid out.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    ready: list[Tensor] | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def words(self) -> int:
        """V."""
        return self.hidden.shape[1] if self.weight is None else self.weight.shape[0]

    def blocks(self, width: int) -> Iterator[tuple[int, Tensor]]:
        """(first word, logits [N, about width]) of all words; views where the logits are there already."""
        if self.ready is not None:
            for start, piece in zip(range(0, self.words, PIECE), self.ready, strict=True):
                bias = None if self.bias is None else self.bias[start : start + PIECE]
                yield start, onednn_linear(self.hidden, piece, bias)
            return
        for start in range(0, self.words, width):
            yield start, self._block(start, min(start + width, self.words))

    def _block(self, start: int, stop: int) -> Tensor:
        if self.weight is None:
            return self.hidden[:, start:stop]
        # Few rows and many words: with the words on the left a processor's product is up to twice as fast.
        logits = torch.mm(self.weight[start:stop], self.hidden.T)
        return (logits if self.bias is None else logits.add_(self.bias[start:stop, None])).T

    @property
    def logits(self) -> Tensor:
        """All of them, [N, V]."""
        found = [logits for _, logits in self.blocks(self.words)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def over(self, temperature: float) -> Readout:
        """Of logits / temperature."""
        if temperature == 1.0:
            return self
        bias = None if self.bias is None else self.bias / temperature
        return replace(self, hidden=self.hidden / temperature, bias=bias)

    def select(self, rows: Tensor) -> Readout:
        return replace(self, hidden=self.hidden.index_select(0, rows))

    def repeat(self, times: int) -> Readout:
        return replace(self, hidden=self.hidden.repeat_interleave(times, dim=0))

    def join(self, other: Readout) -> Readout:
        return replace(self, hidden=torch.cat([self.hidden, other.hidden]))


CPU_CHUNK, CHUNK = 1 << 22, 1 << 24
"""Probabilities that scoring keeps for the gradient, and logits that it holds at a time, in numbers: on a processor
(16 MiB; docs/performance.md says what more of them would cost and save) and elsewhere."""


def readout_logprobs(readout: Readout, tokens: Tensor, temperature: float = 1.0, *, chunk: int | None = None) -> Tensor:
    """log softmax(logits / temperature) of one token a row, with gradient, float32 [M].

    The logits of all rows are never there together: they are computed in chunks. Probabilities of the first rows, as
    many as make up a chunk, are kept for the gradient; those of the others are computed again.

    Args:
        readout: of M rows.
        tokens: int64 [M].
        chunk: numbers held at a time; see `CHUNK` when None.
    """
    if readout.weight is None:
        logits = readout.logits.float()
        return -torch.nn.functional.cross_entropy(
            logits if temperature == 1.0 else logits / temperature, tokens, reduction="none"
        )
    picked, _ = _chunked(readout, tokens, temperature, chunk, entropy=False)
    return picked


def readout_entropies(
    readout: Readout, tokens: Tensor, temperature: float = 1.0, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Beside `readout_logprobs`, the entropy −Σ p log p of each row's softmax(logits / temperature) in nats: both with
    gradient, float32 [M], from the same product."""
    if readout.weight is None:
        logits = readout.logits.float()
        spread = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
        return spread.gather(1, tokens[:, None])[:, 0], -(spread.exp() * spread).sum(dim=1)
    return _chunked(readout, tokens, temperature, chunk, entropy=True)


def _chunked(
    readout: Readout, tokens: Tensor, temperature: float, chunk: int | None, *, entropy: bool
) -> tuple[Tensor, Tensor]:
    hidden = readout.hidden
    if chunk is None:
        chunk = CPU_CHUNK if hidden.device.type == "cpu" else CHUNK
    rows = max(1, chunk // readout.words)
    if torch.is_autocast_enabled(hidden.device.type):  # of which the backward pass knows nothing
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return _Chunked.apply(hidden, readout.weight, readout.bias, tokens, temperature, rows, entropy)


def placed(picked: Tensor, wanted: Tensor) -> Tensor:
    """Numbers [M], in order, where `wanted` (bool [N, T]) is true: float32 [N, T], 0 elsewhere."""
    return torch.zeros(wanted.shape, dtype=torch.float32, device=wanted.device).masked_scatter(wanted, picked)


class _Chunked(torch.autograd.Function):
    """Keeps one number a row, and what room there is of probabilities.

    Products are computed in the type of `hidden`; gradients of weight and bias are summed over the chunks in float32
    at least, because in bfloat16 the many small ones of a long sum would be lost.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, rows: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.given, ctx.parameter = weight.dtype, weight  # the parameter itself: what is saved may be its cast
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        picked = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        spreads = torch.zeros_like(picked) if entropy else picked.new_empty(0)
        kept = None
        for part in _parts(len(hidden), rows):
            logprobs, chances = _softmax(_scaled(hidden[part], weight, bias, temperature), tokens[part])
            picked[part] = logprobs
            if entropy:
                spreads[part] = torch.special.entr(chances).sum(dim=1)
            kept = chances if kept is None else kept
        ctx.save_for_backward(hidden, weight, bias, tokens, spreads, kept if any(ctx.needs_input_grad) else None)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return picked, spreads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_spreads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, spreads, kept = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(ctx.given, torch.float32)
        into = sum_of(ctx.parameter) if ctx.needs_input_grad[1] else None
        of_weight = into
        if ctx.needs_input_grad[1] and into is None:
            of_weight = torch.zeros_like(weight, dtype=exact)
        of_bias = torch.zeros_like(bias, dtype=exact) if ctx.needs_input_grad[2] else None
        for part in _parts(len(hidden), ctx.rows):
            if kept is not None and part.start == 0:
                chances = kept
            else:
                _, chances = _softmax(_scaled(hidden[part], weight, bias, ctx.temperature), tokens[part])
            upstream = gradient[part, None] / ctx.temperature
            wider = None
            if ctx.entropy:  # dH/dlogit = −p (log p + H) / temperature; where p is 0 it is 0
                inner = torch.special.entr(chances).sub_(chances * spreads[part, None])
                wider = inner.mul_(of_spreads[part, None] / ctx.temperature)
            slope = chances.mul_(-upstream).scatter_add_(1, tokens[part, None], upstream)
            slope = (slope if wider is None else slope.add_(wider)).to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[part] = multiply(slope, weight)
            if of_weight is not None and slope.dtype == exact:
                of_weight.addmm_(slope.T, hidden[part])  # no product beside the sum
            elif of_weight is not None:
                of_weight += slope.T @ hidden[part]
            if of_bias is not None:
                of_bias += slope.sum(dim=0, dtype=exact)
        of_weight, of_bias = (None if each is None else each.to(ctx.given) for each in (of_weight, of_bias))
        return of_hidden, of_weight if into is None else None, of_bias, None, None, None, None


def _softmax(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of one token a row, [M], and all probabilities [M, V], which take the place of the logits."""
    told = logits.gather(1, tokens[:, None])[:, 0]
    top = logits.amax(dim=1, keepdim=True)
    chances = logits.sub_(top).exp_()
    total = chances.sum(dim=1, keepdim=True)
    return told - top[:, 0] - total[:, 0].log(), chances.div_(total)


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _scaled(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = linear(hidden, weight, bias).float()  # our own: it may be written to
    return logits if temperature == 1.0 else logits.div_(temperature)
