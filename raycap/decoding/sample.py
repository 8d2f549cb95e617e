"""K sampled captions and the greedy one of every image of a lease, in one cached batch.

The image's prefix is run once and its keys and values serve all K + 1 rows; rows that ended leave the batch; a token
is drawn from the whole distribution by inverse CDF with one counter-based uniform number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycap.decoding.draw import draw, likeliest
from raycap.decoding.filters import Filters
from raycap.decoding.uniforms import caption_uniforms
from raycap.models.captioner import Captioner
from raycap.models.readout import Readout
from raycap.types import Generation

# Moving the survivors' keys and values costs as much as a few dead rows: wait until this share of the batch is dead.
_DEAD_SHARE = 0.2
# Products of fewer rows take another path through the linear algebra, and with it other last bits: dead rows stay.
_FEWEST_ROWS = 8
ROWS = 512
"""Rows that are decoded at a time; images beyond them wait until places become free."""


@torch.inference_mode()
def generate(
    captioner: Captioner,
    features: Tensor,
    *,
    positions: Sequence[int] | None = None,
    num_samples: int,
    greedy: bool,
    max_length: int,
    seed: int = 0,
    step: int = 0,
    temperature: float = 1.0,
    rows_at_once: int = ROWS,
    filters: Filters | None = None,
) -> Generation:
    """Captions of B images.

    Args:
        captioner: in evaluation mode (dropout off).
        features: of the B images, as the captioner takes them.
        positions: the prompts' places in the order of the training images, which address their random numbers;
            0 .. B−1 when not given.
        num_samples: K; 0 for greedy captions alone.
        greedy: whether the greedy caption comes too.
        max_length: limit T in tokens, the EOS counted.
        temperature: of the samples; the log-probabilities returned are those of this distribution.
        rows_at_once: captions that are decoded side by side; an image that finds no room waits for the end of others.
        filters: limits on the next token, for captions that nobody learns from.
    """
    batch, group = features.shape[0], num_samples + int(greedy)
    rows = _Rows(_uniforms(batch, positions, num_samples, greedy, max_length, seed, step), num_samples, greedy,
                 captioner.tokenizer.pad_id, features.device)  # fmt: skip
    with captioner.decoding():
        _walk(captioner, rows, _Waiting(captioner, features, group, rows_at_once), rows_at_once, temperature, filters)
    return rows.result(captioner, batch, num_samples, greedy)


def _walk(
    captioner: Captioner, rows: _Rows, waiting: _Waiting, rows_at_once: int, temperature: float,
    filters: Filters | None,
) -> None:  # fmt: skip
    """Token by token until all rows have ended and no image waits."""
    state, alive = _filled(*waiting.next(rows_at_once), rows.none)
    while True:
        tokens, over = rows.choose(alive, state.readout, temperature, captioner.tokenizer.eos_id, filters)
        dead = int(over.sum())
        if dead == len(over):
            if waiting.done:
                return
            state, alive = _filled(*waiting.next(rows_at_once), rows.none)
            continue
        if dead >= _DEAD_SHARE * len(over) or rows.is_at_the_limit(alive[over]):
            keep = (~over).nonzero()[:, 0]
            state, alive, tokens = state.select(keep), alive[keep], tokens[keep]
            state, alive, tokens = _filled(state, alive, rows.none, tokens)
        _, state = captioner.step(state, tokens)
        rows.walked[alive] += 1
        if state.joins and waiting.fits(rows_at_once - len(alive)):
            more, fresh = waiting.next(rows_at_once - len(alive))
            state, alive = state.join(more), torch.cat([alive, fresh])


def _uniforms(
    batch: int, positions: Sequence[int] | None, num_samples: int, greedy: bool, max_length: int, seed: int, step: int
) -> Tensor:
    """The numbers of every row, float64 [B·(K + greedy), T]; 0 for greedy ones."""
    numbers = np.zeros((batch, num_samples + int(greedy), max_length))
    if num_samples:
        places = np.arange(batch) if positions is None else np.asarray(positions)
        drawn = caption_uniforms(seed, step, places, num_samples, max_length)
        numbers[:, :num_samples] = drawn.reshape(batch, num_samples, max_length)
    return torch.from_numpy(numbers.reshape(-1, max_length))


def _filled(state: Any, alive: Tensor, none: int, tokens: Tensor | None = None) -> Any:
    """At least `_FEWEST_ROWS` rows: copies of the first one stand in, and their words belong to nobody (`none`)."""
    missing = _FEWEST_ROWS - len(alive)
    if missing > 0:
        more = torch.cat([torch.arange(len(alive)), torch.zeros(missing, dtype=torch.int64)]).to(alive.device)
        state, alive = state.select(more), torch.cat([alive, alive.new_full((missing,), none)])
        tokens = None if tokens is None else tokens[more]
    return (state, alive) if tokens is None else (state, alive, tokens)


class _Waiting:
    """Images that have not begun yet."""

    def __init__(self, captioner: Captioner, features: Tensor, group: int, rows_at_once: int) -> None:
        self.captioner, self.features, self.group = captioner, features, group
        self.begun = 0
        # a few images at a time: every arrival moves the keys and values of those that are there
        self.fewest = max(1, rows_at_once // group // 4)

    @property
    def done(self) -> bool:
        return self.begun == len(self.features)

    def fits(self, places: int) -> bool:
        left = len(self.features) - self.begun
        return left > 0 and places // self.group >= min(left, self.fewest)

    def next(self, places: int) -> tuple[Any, Tensor]:
        """State and numbers of the rows of as many images as find room, one at least."""
        images = slice(self.begun, min(self.begun + max(1, places // self.group), len(self.features)))
        self.begun = images.stop
        state = self.captioner.prefill(self.captioner.encode(self.features[images])).repeat(self.group)
        rows = torch.arange(images.start * self.group, images.stop * self.group, device=self.features.device)
        return state, rows


class _Rows:
    """Tokens and log-probabilities of all rows, and one row more for what belongs to none."""

    def __init__(self, uniforms: Tensor, num_samples: int, greedy: bool, pad: int, device: torch.device) -> None:
        self.none, self.limit = uniforms.shape
        self.uniforms = torch.cat([uniforms, uniforms.new_zeros(1, self.limit)]).to(device)
        group = num_samples + int(greedy)
        place = torch.arange(self.none + 1, device=device) % max(1, group)
        self.greedy = None if not greedy else place == group - 1
        self.samples = num_samples > 0
        self.tokens = torch.full((self.none + 1, self.limit), pad, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(self.none + 1, self.limit, device=device)
        self.lengths = torch.zeros(self.none + 1, dtype=torch.int64, device=device)
        self.walked = torch.zeros(self.none + 1, dtype=torch.int64, device=device)  # in the batch, alive or not
        self.finished = torch.zeros(self.none + 1, dtype=torch.bool, device=device)
        self.over = torch.zeros(self.none + 1, dtype=torch.bool, device=device)
        self.over[self.none] = True

    def choose(
        self, alive: Tensor, readout: Readout, temperature: float, eos: int, filters: Filters | None
    ) -> tuple[Tensor, Tensor]:
        """The next token of the batch's rows, noted for those that have not ended; and which of them have by now."""
        if filters is not None:
            logits = filters.forbid(readout.logits.float(), self.tokens[alive], self.lengths[alive], eos)
            readout, temperature = Readout(filters.keep_likely(logits / temperature)), 1.0
        if self.samples:
            numbers = self.uniforms[alive, self.lengths[alive].clamp(max=self.limit - 1)]
            tokens, logprobs = draw(readout, numbers, temperature, None if self.greedy is None else self.greedy[alive])
        else:
            tokens, logprobs = likeliest(readout), torch.zeros(len(alive), device=alive.device)
        open_rows = ~self.over[alive]
        targets = alive[open_rows]
        place = self.lengths[targets]
        self.tokens[targets, place] = tokens[open_rows]
        self.logprobs[targets, place] = logprobs[open_rows]
        self.lengths[targets] = place + 1
        self.finished[targets] = tokens[open_rows] == eos
        self.over[targets] = self.finished[targets] | (place + 1 == self.limit)
        return tokens, self.over[alive]

    def is_at_the_limit(self, rows: Tensor) -> bool:
        """Whether one of these rows has been in the batch for as long as a caption may be: the LM may have no position
        for another token."""
        return bool((self.walked[rows] >= self.limit - 1).any())

    def result(self, captioner: Captioner, batch: int, num_samples: int, greedy: bool) -> Generation:
        group = num_samples + int(greedy)
        every = slice(0, self.none)
        width = max(1, int(self.lengths.max()))

        def cut(values: Tensor, part: slice) -> Any:
            shaped = values.reshape(batch, group, *values.shape[1:])[:, part]
            return shaped.reshape(-1, *values.shape[1:]).cpu().numpy()

        sampled, best = slice(0, num_samples), slice(num_samples, None)
        tokens, lengths = cut(self.tokens[every, :width], sampled), cut(self.lengths[every], sampled)
        greedy_tokens, greedy_lengths = cut(self.tokens[every, :width], best), cut(self.lengths[every], best)
        decode = captioner.tokenizer.decode
        return Generation(
            tokens=tokens,
            lengths=lengths,
            behavior_logprobs=cut(self.logprobs[every, :width], sampled),
            finished=cut(self.finished[every], sampled),
            captions=tuple(decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)),
            greedy_captions=tuple(
                decode(row[:n].tolist()) for row, n in zip(greedy_tokens, greedy_lengths, strict=True)
            ),
            greedy_finished=cut(self.finished[every], best),
            num_samples=num_samples,
        )
