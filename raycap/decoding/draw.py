"""The next token of every row: drawn from the whole distribution, or the likeliest.

A token is the inverse of the cumulative distribution at one uniform number. No noise over the vocabulary is made and no
cumulative sum over it: words are summed in blocks, the number finds its block, then its word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raycap.errors import WorkFailed
from raycap.models.readout import Readout

BLOCK = 128
_LN2 = math.log(2.0)
# Logits of all rows for so many bytes at a time: they stay in the processor's cache while they are summed.
_BYTES = 1 << 20


def draw(
    readout: Readout, uniforms: Tensor, temperature: float = 1.0, greedy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature).

    Args:
        readout: of N rows.
        uniforms: float [N] in [0, 1).
        greedy: bool [N], rows that get their likeliest token instead (the first of several equal ones).

    Returns:
        tokens int64 [N] and their log-probabilities float32 [N]. A token of probability 0 is never drawn.

    Raises:
        WorkFailed: logits are NaN or +∞.
    """
    masses, best, shift = _masses(readout, temperature, greedy)
    if not bool(torch.isfinite(masses.total).all()):  # words behind the first ones are likelier by more than e^88
        masses, best, shift = _masses(Readout(readout.logits), temperature, greedy, shift=_peak(readout, temperature))
        if not bool(torch.isfinite(masses.total).all()):
            raise not_numbers()
    target = uniforms.double()[:, None] * masses.total
    block = _first_above(masses.borders, target)
    before = masses.borders.gather(1, (block - 1).clamp(min=0))
    below = torch.where(block > 0, before, torch.zeros_like(before))
    chosen = masses.of(block[:, 0])
    word = _first_above(chosen.double().cumsum(dim=1), target - below)
    tokens = (block * BLOCK + word)[:, 0]
    logprobs = (chosen.gather(1, word).double().log() - masses.total.log())[:, 0]
    if greedy is not None:
        tokens = torch.where(greedy, best.tokens, tokens)
        likeliest = (best.values - shift[:, 0]).double() * _LN2 - masses.total[:, 0].log()
        logprobs = torch.where(greedy, likeliest, logprobs)
    return tokens, logprobs.float()


@dataclass
class _Masses:
    """2^(logit / ln 2 − shift) of all words of N rows, in blocks of `BLOCK` words, the last one filled up.

    Attributes:
        parts: [N, blocks, BLOCK] each; what the last block lacks is 0.
        borders: float64 [N, blocks], the cumulative sum of the blocks' sums.
    """

    parts: list[Tensor]
    borders: Tensor

    @property
    def total(self) -> Tensor:
        """float64 [N, 1]."""
        return self.borders[:, -1:]

    def of(self, block: Tensor) -> Tensor:
        """The masses [N, BLOCK] of one block a row (int64 [N])."""
        rows = torch.arange(len(block), device=block.device)
        if len(self.parts) == 1:
            return self.parts[0][rows, block]
        chosen, first = torch.empty(len(block), BLOCK, device=block.device), 0
        for part in self.parts:
            here = ((block >= first) & (block < first + part.shape[1])).nonzero()[:, 0]
            chosen[here] = part[here, block[here] - first]
            first += part.shape[1]
        return chosen


def _masses(
    readout: Readout, temperature: float, greedy: Tensor | None, shift: Tensor | None = None
) -> tuple[_Masses, _Best, Tensor]:
    """Masses of all words, the likeliest word of greedy rows, and the shift [N, 1]: the largest of the first logits.

    One shift for all blocks saves looking through every block for its largest logit first; powers of two take about
    half the time of powers of e.
    """
    best = _Best(greedy)
    parts: list[Tensor] = []
    sums: list[Tensor] = []
    for start, logits in _blocks(readout, temperature * _LN2):
        best.look(start, logits)
        if shift is None:
            shift = logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)  # −inf − −inf: NaN
        mass = logits.sub_(shift).exp2_()
        whole = mass.shape[1] // BLOCK * BLOCK
        cut = [mass[:, :whole].unflatten(1, (-1, BLOCK))] if whole else []
        if whole < mass.shape[1]:
            cut.append(torch.nn.functional.pad(mass[:, whole:], (0, BLOCK - mass.shape[1] + whole))[:, None])
        parts += cut
        sums += [part.sum(dim=2) for part in cut]  # now, while they are in the cache
    assert shift is not None
    return _Masses(parts, torch.cat(sums, dim=1).double().cumsum(dim=1)), best, shift


def _peak(readout: Readout, temperature: float) -> Tensor:
    return (readout.logits.float() / (temperature * _LN2)).amax(dim=1, keepdim=True)


def not_numbers() -> WorkFailed:
    """What is raised where logits are not finite, whoever chooses a token by them."""
    return WorkFailed("are not numbers: there is nothing to choose from", key="logits", value=math.nan,
                      remedy="the captioner's weights or features are not finite")  # fmt: skip


def likeliest(readout: Readout) -> Tensor:
    """The likeliest token of every row, the first of several equal ones: int64 [N].

    Raises:
        WorkFailed: logits are NaN or +∞.
    """
    best = _Best(torch.ones(len(readout), dtype=torch.bool, device=readout.hidden.device))
    for start, logits in _blocks(readout):
        best.look(start, logits)
    if not bool((best.values < torch.inf).all()):
        raise not_numbers()
    return best.tokens


def _blocks(readout: Readout, over: float = 1.0) -> Iterator[tuple[int, Tensor]]:
    """(first word, float32 logits / over) of as many words at a time as go through the processor's cache; a GPU takes
    all. Unless `over` is 1 they are nobody else's and may be written over."""
    rows, words = len(readout), readout.words
    width = words if readout.hidden.device.type != "cpu" else max(BLOCK, _BYTES // (4 * rows) // BLOCK * BLOCK)
    ahead = readout.weight is not None and readout.hidden.dtype == torch.float32  # cheaper there, and exact enough
    readout = readout.over(over) if ahead else readout
    for start, found in readout.blocks(width):
        logits = found.float()
        yield start, logits if ahead else logits / over


class _Best:
    """The likeliest token of some rows, block by block; the value of a row that holds a NaN is NaN."""

    def __init__(self, rows: Tensor | None) -> None:
        self.rows = None if rows is None else rows.nonzero()[:, 0]
        self.all = rows is not None and self.rows is not None and len(self.rows) == len(rows)
        if rows is not None:
            self.tokens = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            self.values = torch.full((len(rows),), -torch.inf, device=rows.device)

    def look(self, start: int, logits: Tensor) -> None:
        if self.rows is None or not len(self.rows):
            return
        values, places = (logits if self.all else logits[self.rows]).max(dim=1)
        better = values > self.values[self.rows]
        self.values[self.rows] = torch.maximum(values, self.values[self.rows])
        self.tokens[self.rows] = torch.where(better, places + start, self.tokens[self.rows])


def _first_above(borders: Tensor, target: Tensor) -> Tensor:
    """First place of each row whose cumulative sum exceeds the target, int64 [N, 1]; one that has a share of the sum.

    Rounding may carry a target up to the whole sum itself: the last place with a share stands in then.
    """
    inside = torch.minimum(target, borders[:, -1:] * (1 - 2.0**-50))
    return torch.searchsorted(borders, inside, right=True)
