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

from raycap.decoding.uniforms import caption_uniforms
from raycap.models.captioner import Captioner
from raycap.types import Generation

# Moving the survivors' keys and values costs as much as a few dead rows: wait until this share of the batch is dead.
_DEAD_SHARE = 0.2


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), by inverse CDF.

    Args:
        logits: float [N, V].
        uniforms: float32 [N] in [0, 1).

    Returns:
        tokens int64 [N] and their log-probabilities float32 [N]. A token of probability 0 is never drawn.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    top = scaled.amax(dim=1, keepdim=True)
    cumulative = (scaled - top).exp_().cumsum(dim=1)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)[:, 0]
    # Rounding may carry u·total up to the total itself (once in 2²⁴): the likeliest token stands in then.
    tokens = torch.where(tokens < logits.shape[1], tokens, scaled.argmax(dim=1))
    picked = scaled.gather(1, tokens[:, None])
    return tokens, (picked - top - total.log())[:, 0]


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
    """
    batch = features.shape[0]
    group = num_samples + int(greedy)
    rows = _Rows(batch * group, max_length, captioner.tokenizer.pad_id, features.device)
    is_greedy = torch.zeros(batch, group, dtype=torch.bool, device=features.device)
    if greedy:
        is_greedy[:, -1] = True
    is_greedy = is_greedy.reshape(-1)
    numbers = np.zeros((batch, group, max_length))
    if num_samples:
        places = np.arange(batch) if positions is None else np.asarray(positions)
        drawn = caption_uniforms(seed, step, places, num_samples, max_length)
        numbers[:, :num_samples] = drawn.reshape(batch, num_samples, max_length)
    uniforms = torch.from_numpy(numbers.reshape(-1, max_length)).float().to(features.device)

    state = captioner.prefill(captioner.encode(features)).repeat(group)
    for position in range(max_length):
        alive = rows.alive
        tokens, logprobs = _choose(state.logits, uniforms[alive, position], is_greedy[alive], temperature)
        done = rows.append(position, tokens, logprobs, captioner.tokenizer.eos_id)
        dead = int(done.sum())
        if dead == len(done) or position + 1 == max_length:
            break
        if dead >= _DEAD_SHARE * len(done):
            keep = (~done).nonzero()[:, 0]
            state = state.select(keep)
            rows.keep(keep)
            tokens = tokens[keep]
        _, state = captioner.step(state, tokens)
    return rows.result(captioner, batch, num_samples, greedy)


def _choose(logits: Tensor, uniforms: Tensor, is_greedy: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Samples where rows sample, the likeliest token where they are greedy (its log-probability is not used)."""
    if bool(is_greedy.all()):
        return logits.argmax(dim=1), torch.zeros(len(logits), device=logits.device)
    tokens, logprobs = draw(logits, uniforms, temperature)
    if bool(is_greedy.any()):
        tokens = torch.where(is_greedy, logits.argmax(dim=1), tokens)
    return tokens, logprobs


class _Rows:
    """Tokens and log-probabilities of all rows, and which of them are still in the batch."""

    def __init__(self, count: int, max_length: int, pad: int, device: torch.device) -> None:
        self.tokens = torch.full((count, max_length), pad, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(count, max_length, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)
        self.alive = torch.arange(count, device=device)

    def append(self, position: int, tokens: Tensor, logprobs: Tensor, eos: int) -> Tensor:
        """Write one token to every live row that has not ended; which of the batch's rows have ended by now."""
        open_rows = ~self.finished[self.alive]
        targets = self.alive[open_rows]
        self.tokens[targets, position] = tokens[open_rows]
        self.logprobs[targets, position] = logprobs[open_rows]
        self.lengths[targets] = position + 1
        self.finished[targets] = tokens[open_rows] == eos
        return self.finished[self.alive]

    def keep(self, keep: Tensor) -> None:
        self.alive = self.alive[keep]

    def result(self, captioner: Captioner, batch: int, num_samples: int, greedy: bool) -> Generation:
        group = num_samples + int(greedy)
        width = max(1, int(self.lengths.max()))

        def cut(values: Tensor, part: slice) -> Any:
            shaped = values.reshape(batch, group, *values.shape[1:])[:, part]
            return shaped.reshape(-1, *values.shape[1:]).cpu().numpy()

        sampled, best = slice(0, num_samples), slice(num_samples, None)
        tokens, lengths = cut(self.tokens[:, :width], sampled), cut(self.lengths, sampled)
        greedy_tokens, greedy_lengths = cut(self.tokens[:, :width], best), cut(self.lengths, best)
        decode = captioner.tokenizer.decode
        return Generation(
            tokens=tokens,
            lengths=lengths,
            behavior_logprobs=cut(self.logprobs[:, :width], sampled),
            finished=cut(self.finished, sampled),
            captions=tuple(decode(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)),
            greedy_captions=tuple(
                decode(row[:n].tolist()) for row, n in zip(greedy_tokens, greedy_lengths, strict=True)
            ),
            greedy_finished=cut(self.finished, best),
            num_samples=num_samples,
        )
