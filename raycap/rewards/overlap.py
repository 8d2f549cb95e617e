"""BLEU and ROUGE-L as training rewards, a caption at a time, against the image's labelled references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycap.errors import RecipeError
from raycap.metrics.bleu import bleu
from raycap.metrics.cider import EOS
from raycap.metrics.ptb import tokenize
from raycap.metrics.rouge import rouge_l_caption
from raycap.rewards.context import Context
from raycap.types import CaptionBatch

Overlap = Callable[[Sequence[list[str]], Sequence[list[list[str]]]], Sequence[float]]
"""From N tokenised captions and N lists of tokenised references to N numbers."""


class _OverlapReward:
    """An overlap with the labelled references; None for captions of other images."""

    def __init__(self, context: Context, overlap: Overlap, *, eos: bool) -> None:
        self.overlap = overlap
        end = [EOS] if eos else []
        references = context.labelled_references()
        self.eos = eos
        self.references = {i: [tokenize(text) + end for text in texts] for i, texts in references.items()}

    def score(self, batch: CaptionBatch) -> list[float | None]:
        places = [n for n, image_id in enumerate(batch.image_ids) if self.references.get(image_id)]
        scores: list[float | None] = [None] * len(batch)
        candidates = [tokenize(batch.captions[n]) + [EOS] * (self.eos and batch.finished[n]) for n in places]
        values = self.overlap(candidates, [self.references[batch.image_ids[n]] for n in places])
        for place, value in zip(places, values, strict=True):
            scores[place] = value
        return scores


class BleuReward(_OverlapReward):
    """BLEU-n of each caption by itself, as coco-caption's per-image values (Papineni et al. 2002, sec. 2.3).

    Args:
        order: n, 1 to 4.
        eos: append the end-of-sequence token to references and to captions that finished by themselves.
    """

    def __init__(self, context: Context, *, order: int = 4, eos: bool = True) -> None:
        if order not in (1, 2, 3, 4):
            raise RecipeError("expected 1, 2, 3 or 4", key="rewards.bleu.options.order", value=order)

        def overlap(candidates: Sequence[list[str]], references: Sequence[list[list[str]]]) -> list[float]:
            return [float(row[order - 1]) for row in bleu(candidates, references)[1]] if candidates else []

        super().__init__(context, overlap, eos=eos)
        self.signature = f"BLEU[n{order},caption]+eos[{'finished' if eos else 'none'}]"


class RougeReward(_OverlapReward):
    """ROUGE-L with β = 1.2 (Lin 2004, eq. 2-4), as coco-caption.

    Args:
        eos: append the end-of-sequence token to references and to captions that finished by themselves.
    """

    def __init__(self, context: Context, *, eos: bool = True) -> None:
        super().__init__(context, lambda captions, several: list(map(rouge_l_caption, captions, several)), eos=eos)
        self.signature = f"ROUGE-L[b1.2]+eos[{'finished' if eos else 'none'}]"
