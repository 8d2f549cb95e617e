"""Every figure of one system on one split: the metrics, and what captions look like on the surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raycap.evaluate.judge import judge_embeddings
from raycap.metrics.ptb import tokenize
from raycap.metrics.score import Scores, score_captions
from raycap.metrics.surface import bad_ending_rate, mean_length
from raycap.models.clip import Clip


def score_system(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    judge: Clip | None,
    pictures: Mapping[str, Any],
) -> Scores:
    """Scores with the captions' mean length (tokens), bad-ending rate and number of different words among the metrics.

    Args:
        pictures: the judge's embeddings by image id.
    """
    embeddings = judge_embeddings(judge, pictures, captions, references) if judge is not None else None
    scores = score_captions(captions, references, metrics, embeddings=embeddings)
    tokens = [tokenize(caption) for caption in captions.values()]
    surface = {
        "bad_ending_rate": bad_ending_rate(tokens),
        "length": mean_length(tokens),
        "vocabulary": float(len({word for caption in tokens for word in caption})),
    }
    unavailable = dict(scores.unavailable)
    if judge is None:
        unavailable.update({name: "no judge" for name in ("clipscore", "refcompare") if name in metrics})
    return replace(scores, metrics={**scores.metrics, **surface}, unavailable=unavailable)
