"""Every figure of one system on one split: the metrics, and what captions look like on the surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from raycap.evaluate.judge import Judge
from raycap.metrics.cider import DocumentFrequency
from raycap.metrics.diversity import distinct_n, mbleu, novel_share, self_cider, vocabulary_size
from raycap.metrics.ptb import tokenize
from raycap.metrics.reference_index import Tokens
from raycap.metrics.retrieval import self_retrieval
from raycap.metrics.score import BY_CLIP, Scores, score_captions
from raycap.metrics.surface import bad_ending_rate, mean_length, unsupported_gender_rate


def sample_diversity(samples: Mapping[str, Sequence[str]], frequency: DocumentFrequency) -> dict[str, float]:
    """How different K ≥ 2 samples of an image are, mean over images: distinct-1 and -2, mBLEU-4 (high means alike),
    self-CIDEr.

    Args:
        frequency: document frequencies for self-CIDEr, of references.
    """
    tokens = {image: [tokenize(text) for text in texts] for image, texts in samples.items()}
    several = list(tokens.values())
    return {
        "distinct_1": fmean(distinct_n(texts, 1) for texts in several),
        "distinct_2": fmean(distinct_n(texts, 2) for texts in several),
        "mbleu_4": float(mbleu(several)[3]),
        "self_cider": fmean(self_cider(tokens, frequency).values()),
    }


def score_system(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    judge: Judge | None,
    training: Sequence[Tokens] = (),
) -> Scores:
    """Scores, and beside them what captions look like: mean length (tokens), share of bad endings, different words,
    share with a gender word that no reference supports, share that no training caption says word for word; with a judge
    the share of captions that find their own image among all (self-retrieval R@1/5/10).

    Args:
        training: the captions that the system was trained on, tokenised, where they are known.
    """
    embeddings = judge.embeddings(captions) if judge is not None else None
    scores = score_captions(captions, references, metrics, embeddings=embeddings)
    tokens = [tokenize(caption) for caption in captions.values()]
    surface = {
        "bad_ending_rate": bad_ending_rate(tokens),
        "length": mean_length(tokens),
        "vocabulary": float(vocabulary_size(tokens)),
        "unsupported_gender_rate": unsupported_gender_rate(
            tokens, [[tokenize(text) for text in references[image]] for image in captions]
        ),
    }
    if training:
        surface["novel_share"] = novel_share(tokens, training)
    if embeddings is not None and captions:
        image, caption = embeddings.pairs(list(captions))
        surface |= {f"self_retrieval_r{k}": share for k, share in self_retrieval(caption, image).items()}
    unavailable = dict(scores.unavailable)
    if judge is None:
        unavailable.update({name: "no judge" for name in BY_CLIP if name in metrics})
    return replace(scores, metrics={**scores.metrics, **surface}, unavailable=unavailable)
