"""Beam search over the four verbs, equal to Hugging Face's on the same model (early_stopping=False); diverse beams."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raycap.decoding.draw import not_numbers
from raycap.decoding.filters import Filters
from raycap.errors import Refused
from raycap.models.captioner import Captioner

# Moving the survivors costs as much as a few images whose search has ended: wait until this share has.
_DEAD_SHARE = 0.2


@dataclass
class _Done:
    """Finished hypotheses of one image: (score, tokens), best ones kept; once closed, nothing more comes in.

    An image must close by itself and stay closed: with a length penalty a later hypothesis may score higher, and the
    image's caption would depend on how long its batch mates keep the search going.
    """

    size: int
    found: list[tuple[float, list[int]]] = field(default_factory=list)
    closed: bool = False

    def add(self, score: float, tokens: list[int]) -> None:
        if self.closed:
            return
        self.found.append((score, tokens))
        self.found.sort(key=lambda item: -item[0])
        del self.found[self.size :]

    def close(self, best_running: float) -> None:
        """Close when no running beam, at its present length, beats the worst kept hypothesis."""
        self.closed = self.closed or (len(self.found) == self.size and self.found[-1][0] >= best_running)


@torch.inference_mode()
def beam_search(
    captioner: Captioner, features: Tensor, *, beam_size: int, max_length: int, length_penalty: float = 1.0,
    groups: int = 1, diversity: float = 0.0, filters: Filters | None = None,
) -> list[tuple[str, float]]:  # fmt: skip
    """The best caption of each image and its score; the arguments are those of `beam_captions`."""
    found = beam_captions(
        captioner, features, beam_size=beam_size, max_length=max_length, length_penalty=length_penalty, groups=groups,
        diversity=diversity, filters=filters,
    )  # fmt: skip
    return [captions[0] for captions in found]


@torch.inference_mode()
def beam_captions(
    captioner: Captioner, features: Tensor, *, beam_size: int, max_length: int, length_penalty: float = 1.0,
    groups: int = 1, diversity: float = 0.0, filters: Filters | None = None,
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """`beam_size` captions of each image, best first, each with its score Σ logp / length^length_penalty (EOS counted).

    With several groups the search is diverse (Vijayakumar et al. 2016): beams are split into groups, and a token that
    earlier groups chose in the same place costs `diversity` for each time they did; the score holds these costs.

    Args:
        features: of B images.
        beam_size: hypotheses kept an image, a multiple of `groups`.
        max_length: limit in tokens, EOS included.

    Raises:
        Refused: `groups` does not divide `beam_size`.
        WorkFailed: logits are NaN or +∞.
    """
    if groups < 1 or beam_size % groups:
        raise Refused("expected a divisor of beam_size", key="groups", value=groups, remedy=f"beam_size = {beam_size}")
    with captioner.decoding():
        done = _search(captioner, features, beam_size, max_length, length_penalty, groups, diversity, filters)
    decode = captioner.tokenizer.decode
    ranked = [sorted((h for group in of_image for h in group.found), key=lambda h: -h[0]) for of_image in done]
    return [[(decode(ids), score) for score, ids in of_image] for of_image in ranked]


def _search(
    captioner: Captioner, features: Tensor, beam_size: int, max_length: int, length_penalty: float, groups: int,
    diversity: float, filters: Filters | None,
) -> list[list[_Done]]:  # fmt: skip
    """The hypotheses of each image and group."""
    batch, eos = features.shape[0], captioner.tokenizer.eos_id
    size = beam_size // groups
    state = captioner.prefill(captioner.encode(features)).repeat(beam_size)
    device = state.readout.hidden.device
    running = torch.full((batch, groups, size), -1e9, device=device)
    running[:, :, 0] = 0.0  # all beams of a group start equal: only the first may speak
    tokens = torch.zeros(batch, groups, size, 0, dtype=torch.int64, device=device)
    done = [[_Done(size) for _ in range(groups)] for _ in range(batch)]
    open_images = list(range(batch))
    for length in range(1, max_length + 1):
        count = len(open_images)
        logprobs = torch.log_softmax(state.readout.logits.float(), dim=-1)
        if filters is not None:
            said = tokens.view(count * beam_size, -1)
            lengths = torch.full((len(said),), length - 1, device=device)
            logprobs = filters.forbid(logprobs, said, lengths, eos)
        logprobs = logprobs.view(count, groups, size, -1)
        chosen = torch.zeros(count, logprobs.shape[-1], device=device)  # how often earlier groups said it
        beams, words = [], []
        for group in range(groups):
            hypotheses = [done[image][group] for image in open_images]
            penalised = logprobs[:, group] - diversity * chosen[:, None] if diversity and group else logprobs[:, group]
            kept = _advance(hypotheses, running[:, group], penalised, tokens[:, group], eos, length**length_penalty)
            running[:, group] = kept[0]
            beams.append(kept[1])
            words.append(kept[2])
            if groups > 1:
                chosen.scatter_add_(1, kept[2], torch.ones_like(kept[0]))
        beam, word = torch.stack(beams, dim=1), torch.stack(words, dim=1)  # [count, groups, size]
        tokens = torch.cat([tokens.gather(2, beam[..., None].expand(-1, -1, -1, length - 1)), word[..., None]], dim=3)
        still = [n for n, image in enumerate(open_images) if not all(g.closed for g in done[image])]
        if not still or length == max_length:
            break
        first = torch.arange(count, device=device)[:, None, None] * beam_size
        rows = first + torch.arange(groups, device=device)[:, None] * size + beam
        if len(still) <= (1 - _DEAD_SHARE) * count:  # images whose search has ended leave the batch
            open_images = [open_images[n] for n in still]
            index = torch.tensor(still, device=device)
            running, tokens, rows, word = running[index], tokens[index], rows[index], word[index]
        _, state = captioner.step(state.select(rows.reshape(-1)), word.reshape(-1))
    for n, image in enumerate(open_images):
        for group, of_group in enumerate(done[image]):
            _collect_running(of_group, tokens[n, group], running[n, group], length_penalty)
    return done


def _advance(
    done: list[_Done], running: Tensor, logprobs: Tensor, tokens: Tensor, eos: int, divisor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One token more for the beams of a group.

    Args:
        done: of C images.
        running: [C, S] scores of its beams.
        logprobs: [C, S, V].
        tokens: int64 [C, S, t].

    Returns:
        [C, S] each: scores of the beams that go on, the beams they come from, their words.
    """
    size, width = running.shape[1], logprobs.shape[-1]
    flat = (running[:, :, None] + logprobs).view(len(running), -1)
    scores, places = flat.topk(min(2 * size, flat.shape[1]), dim=1)
    beams, words = places // width, places % width
    ends = words == eos
    _collect(done, tokens, beams, scores, ends, eos, size, divisor)
    keep = scores.masked_fill(ends, -1e9).topk(size, dim=1)
    for hypotheses, best in zip(done, (keep.values[:, 0] / divisor).tolist(), strict=True):
        if math.isnan(best):  # topk puts NaN first, and a softmax hands it on to all words of its row
            raise not_numbers()
        hypotheses.close(best)
    return keep.values, beams.gather(1, keep.indices), words.gather(1, keep.indices)


def _collect(
    done: list[_Done], tokens: Tensor, beams: Tensor, scores: Tensor, ends: Tensor, eos: int, size: int, divisor: float
) -> None:
    """Move the hypotheses that ended among the best `size` candidates of each image."""
    for image, place in ends[:, :size].nonzero().tolist():
        prefix = tokens[image, int(beams[image, place])].tolist()
        done[image].add(float(scores[image, place]) / divisor, [*prefix, eos])


def _collect_running(done: _Done, tokens: Tensor, running: Tensor, length_penalty: float) -> None:
    """Hypotheses of one image that the length limit cut compete with the finished ones."""
    for ids, score in zip(tokens.tolist(), running.tolist(), strict=True):
        if score > -1e8:
            done.add(score / len(ids) ** length_penalty, ids)
