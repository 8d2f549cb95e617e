"""Beam search over the four verbs, equal to Hugging Face's on the same model (early_stopping=False)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from raycap.models.captioner import Captioner


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
    captioner: Captioner, features: Tensor, *, beam_size: int, max_length: int, length_penalty: float = 1.0
) -> list[tuple[str, float]]:
    """The best caption of each image and its score Σ logp / length^length_penalty (EOS counted).

    Args:
        features: of B images.
        beam_size: hypotheses kept an image.
        max_length: limit in tokens, EOS included.
    """
    batch, eos = features.shape[0], captioner.tokenizer.eos_id
    state = captioner.prefill(captioner.encode(features)).repeat(beam_size)
    device = state.logits.device
    running = torch.full((batch, beam_size), -1e9, device=device)
    running[:, 0] = 0.0  # all beams start equal: only the first may speak
    tokens = torch.zeros(batch, beam_size, 0, dtype=torch.int64, device=device)
    done = [_Done(beam_size) for _ in range(batch)]
    for position in range(max_length):
        logprobs = torch.log_softmax(state.logits.float(), dim=-1).view(batch, beam_size, -1)
        width = logprobs.shape[-1]
        flat = (running[:, :, None] + logprobs).view(batch, -1)
        scores, places = flat.topk(min(2 * beam_size, flat.shape[1]), dim=1)
        beams, words = places // width, places % width
        length = position + 1
        ends = words == eos
        _collect(done, tokens, beams, scores, ends, eos, beam_size, length**length_penalty)
        keep = scores.masked_fill(ends, -1e9).topk(beam_size, dim=1)
        running = keep.values
        beams, words = beams.gather(1, keep.indices), words.gather(1, keep.indices)
        tokens = torch.cat([tokens.gather(1, beams[:, :, None].expand(-1, -1, position)), words[:, :, None]], dim=2)
        for hypotheses, best in zip(done, (running[:, 0] / length**length_penalty).tolist(), strict=True):
            hypotheses.close(best)
        if all(hypotheses.closed for hypotheses in done) or length == max_length:
            break
        rows = (torch.arange(batch, device=device)[:, None] * beam_size + beams).view(-1)
        _, state = captioner.step(state.select(rows), words.reshape(-1))
    _collect_running(done, tokens, running, length_penalty)
    best_of = [d.found[0] for d in done]
    return [(captioner.tokenizer.decode(ids), score) for score, ids in best_of]


def _collect(
    done: list[_Done], tokens: Tensor, beams: Tensor, scores: Tensor, ends: Tensor, eos: int, size: int, divisor: float
) -> None:
    """Move the hypotheses that ended among the best `size` candidates of each image."""
    for image, place in ends[:, :size].nonzero().tolist():
        prefix = tokens[image, int(beams[image, place])].tolist()
        done[image].add(float(scores[image, place]) / divisor, [*prefix, eos])


def _collect_running(done: list[_Done], tokens: Tensor, running: Tensor, length_penalty: float) -> None:
    """Hypotheses that the length limit cut compete with the finished ones."""
    length = tokens.shape[2]
    for image, hypotheses in enumerate(done):
        for beam in range(tokens.shape[1]):
            score = float(running[image, beam])
            if score > -1e8:
                hypotheses.add(score / length**length_penalty, tokens[image, beam].tolist())
