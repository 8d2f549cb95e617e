"""BLEU and ROUGE-L as training rewards, a caption at a time, against the image's labelled references."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from raycap.errors import RecipeError
from raycap.metrics.bleu import bleu_counts
from raycap.metrics.cider import EOS
from raycap.metrics.ptb import tokenize
from raycap.metrics.reference_index import index_references
from raycap.metrics.rouge import rouge_l_caption
from raycap.rewards.context import Context
from raycap.types import CaptionBatch


class _OverlapReward(ABC):
    """An overlap with the labelled references; None for captions of other images.

    Args:
        eos: append the end-of-sequence token to references and to captions that finished by themselves.
    """

    def __init__(self, context: Context, *, eos: bool) -> None:
        end = [EOS] if eos else []
        labelled = {i: texts for i, texts in context.labelled_references().items() if texts}
        self.eos = eos
        self.references = {i: [tokenize(text) + end for text in texts] for i, texts in labelled.items()}

    @abstractmethod
    def overlap(self, candidates: Sequence[list[str]], image_ids: Sequence[str]) -> Sequence[float]:
        """N numbers of N tokenised captions of labelled images."""

    def score(self, batch: CaptionBatch) -> list[float | None]:
        places = [n for n, image_id in enumerate(batch.image_ids) if image_id in self.references]
        scores: list[float | None] = [None] * len(batch)
        candidates = [tokenize(batch.captions[n]) + [EOS] * (self.eos and batch.finished[n]) for n in places]
        values = self.overlap(candidates, [batch.image_ids[n] for n in places])
        for place, value in zip(places, values, strict=True):
            scores[place] = value
        return scores


class BleuReward(_OverlapReward):
    """BLEU-n of each caption by itself, as coco-caption's per-image values (Papineni et al. 2002, section 2.3).

    min(1, e^(1 − r/c)) · (Π_{m ≤ n} p_m)^(1/n), 0..1: see `metrics.bleu.bleu`. None where the image has no references.

    Args:
        order: n, 1 to 4.
        eos: append the end-of-sequence token to references and to captions that finished by themselves.

    Raises:
        RecipeError: another `order`.
    """

    def __init__(self, context: Context, *, order: int = 4, eos: bool = True) -> None:
        self.check_options(order=order)
        super().__init__(context, eos=eos)
        self.order, (self.index, _) = order, index_references(self.references)
        self.signature = f"BLEU[n{order},caption]+eos[{'finished' if eos else 'none'}]"

    @staticmethod
    def check_options(*, order: int = 4, eos: bool = True) -> None:
        """Raises RecipeError for what the constructor would refuse."""
        if order not in (1, 2, 3, 4):
            raise RecipeError("expected 1, 2, 3 or 4", key="rewards.bleu.options.order", value=order)

    def overlap(self, candidates: Sequence[list[str]], image_ids: Sequence[str]) -> Sequence[float]:
        counts = bleu_counts(candidates, self.index.numbers(image_ids), self.index)
        values: list[float] = counts.scores()[:, self.order - 1].tolist()
        return values


class RougeReward(_OverlapReward):
    """ROUGE-L, F = (1 + β²)PR / (R + β²P) with β = 1.2 (Lin 2004, eq. 2–4), 0..1, as coco-caption.

    P, R: see `metrics.rouge.rouge_l_caption`. None where the image has no references.

    Args:
        eos: append the end-of-sequence token to references and to captions that finished by themselves.
    """

    def __init__(self, context: Context, *, eos: bool = True) -> None:
        super().__init__(context, eos=eos)
        self.signature = f"ROUGE-L[b1.2]+eos[{'finished' if eos else 'none'}]"

    def overlap(self, candidates: Sequence[list[str]], image_ids: Sequence[str]) -> Sequence[float]:
        return [rouge_l_caption(c, self.references[i]) for c, i in zip(candidates, image_ids, strict=True)]
