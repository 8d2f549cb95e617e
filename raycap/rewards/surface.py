"""Rewards on a caption's surface: length, repetition, bad endings, gender words that no reference supports.

They are brakes, added with small weights where another reward is exploited: 0 is as good as it gets, and a fault costs.
"""

from __future__ import annotations

from raycap.errors import RecipeError
from raycap.metrics.ptb import tokenize
from raycap.metrics.surface import has_bad_ending, repetition, unsupported_gender
from raycap.rewards.context import Context
from raycap.types import CaptionBatch


class LengthReward:
    """−max(0, |words − target| − tolerance) / target: 0 near the target, falling linearly outside. (Our own.)

    Args:
        target: words; the mean length of the labelled references when None.
        tolerance: words that cost nothing on either side.

    Raises:
        RecipeError: a target that is not above 0 (no references, none given), or a negative tolerance.
    """

    def __init__(self, context: Context, *, target: float | None = None, tolerance: float = 2.0) -> None:
        if target is None:
            lengths = [len(tokenize(text)) for texts in context.labelled_references().values() for text in texts]
            target = sum(lengths) / len(lengths) if lengths else 0.0
        self.check_options(target=target, tolerance=tolerance)
        self.target, self.tolerance = target, tolerance
        self.signature = f"length[{target:.2f}±{tolerance:g}]"

    @staticmethod
    def check_options(*, target: float | None = None, tolerance: float = 2.0) -> None:
        """Raises RecipeError for what the constructor would refuse."""
        if target is not None and not target > 0:
            raise RecipeError("expected a positive number of words", key="rewards.length.options.target", value=target,
                              remedy="it is the references' mean length where there are any")  # fmt: skip
        if not tolerance >= 0:
            raise RecipeError("expected 0 or more words", key="rewards.length.options.tolerance", value=tolerance)

    def score(self, batch: CaptionBatch) -> list[float | None]:
        over = [abs(len(tokenize(text)) - self.target) - self.tolerance for text in batch.captions]
        return [-max(0.0, words) / self.target for words in over]


class RepetitionReward:
    """−(1 − distinct n-grams / n-grams), the share that the caption has said before (Welleck et al. 2020, seq-rep-n).

    Args:
        n: words of an n-gram.

    Raises:
        RecipeError: n below 1.
    """

    def __init__(self, context: Context, *, n: int = 2) -> None:
        self.check_options(n=n)
        self.n, self.signature = n, f"repetition[n{n}]"

    @staticmethod
    def check_options(*, n: int = 2) -> None:
        """Raises RecipeError for what the constructor would refuse."""
        if n < 1:
            raise RecipeError("expected 1 or more", key="rewards.repetition.options.n", value=n)

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [-repetition(tokenize(text), self.n) for text in batch.captions]


class BadEndingReward:
    """−1 for a caption that stops in the middle, as CIDEr without an EOS token teaches (Guo et al. 2018); else 0.

    Args:
        unfinished: whether a caption that the length limit cut counts as one, whatever its last word.
    """

    def __init__(self, context: Context, *, unfinished: bool = True) -> None:
        self.unfinished = unfinished
        self.signature = f"bad_ending[{'unfinished' if unfinished else 'words'}]"

    def score(self, batch: CaptionBatch) -> list[float | None]:
        pairs = zip(batch.captions, batch.finished, strict=True)
        return [-float((self.unfinished and not ended) or has_bad_ending(tokenize(text))) for text, ended in pairs]


class BiasReward:
    """−(number of gender words whose gender no reference has) (Hendricks et al. 2018); None without references."""

    def __init__(self, context: Context) -> None:
        references = context.labelled_references()
        self.references = {i: [tokenize(text) for text in texts] for i, texts in references.items()}
        self.signature = "bias[gender]"

    def score(self, batch: CaptionBatch) -> list[float | None]:
        scores: list[float | None] = []
        for image_id, text in zip(batch.image_ids, batch.captions, strict=True):
            several = self.references.get(image_id)
            scores.append(-float(len(unsupported_gender(tokenize(text), several))) if several else None)
        return scores
