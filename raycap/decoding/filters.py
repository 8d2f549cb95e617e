"""What decoding for people may leave out: unlikely words, an early end, phrases said before. Never while training.

Each filter is Hugging Face's of the same meaning, applied in its order: what may not come at all, then temperature,
then top-k, then top-p (Holtzman et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycap.errors import Refused


@dataclass(frozen=True)
class Filters:
    """Limits on the next token; the defaults limit nothing.

    Attributes:
        top_k: only so many likeliest words; 0: all.
        top_p: only the likeliest words that together have this probability.
        min_length: words before the caption may end.
        no_repeat_ngram: no so-many words in a row are said twice in a caption; 0: they may be.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_length: int = 0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "min_length", "no_repeat_ngram"):
            if getattr(self, name) < 0:
                raise Refused("expected 0 or more", key=name, value=getattr(self, name))
        if not 0 < self.top_p <= 1:
            raise Refused("expected a share in (0, 1]", key="top_p", value=self.top_p)

    def forbid(self, logits: Tensor, said: Tensor, lengths: Tensor, eos: int) -> Tensor:
        """Logits with −inf at tokens that may not come: the end before `min_length`, the last word of a phrase.

        Args:
            logits: float32 [N, V].
            said: int64 [N, T], what the rows have said; what stands behind `lengths` is not looked at.
            lengths: int64 [N].
        """
        if self.min_length:
            early = (lengths < self.min_length).nonzero()[:, 0]
            logits = logits.index_put((early, torch.full_like(early, eos)), logits.new_tensor(-torch.inf))
        if self.no_repeat_ngram:
            rows, words = self._repeats(said, lengths)
            logits = logits.index_put((rows, words), logits.new_tensor(-torch.inf))
        return logits

    def keep_likely(self, logits: Tensor) -> Tensor:
        """Logits (temperature applied) with −inf outside top-k and top-p; the likeliest word always stays."""
        if self.top_k and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(dim=1)
            tail = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - self.top_p
            tail[:, -1] = False
            logits = logits.masked_fill(tail.scatter(1, order, tail), -torch.inf)
        return logits

    def _repeats(self, said: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(row, word) of every word that would end a phrase a second time."""
        size, width = self.no_repeat_ngram, said.shape[1]
        if width < size:
            return said.new_zeros(0), said.new_zeros(0)
        phrases = said.unfold(1, size, 1)  # [N, T − size + 1, size]
        ends = torch.arange(size, width + 1, device=said.device)
        known = ends <= lengths[:, None]
        places = lengths[:, None] - torch.arange(size - 1, 0, -1, device=said.device)
        last = said.gather(1, places.clamp(min=0))  # the size − 1 words that were said last
        again = known & (phrases[:, :, :-1] == last[:, None]).all(dim=2) & (lengths >= size)[:, None]
        rows, at = again.nonzero(as_tuple=True)
        return rows, phrases[rows, at, -1]


NO_FILTERS = Filters()
