"""Figures that stand beside the metrics: what captions look like, and whether they find their own picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from raycap.evaluate.judge import Judge, judge_references
from raycap.evaluate.scoring import sample_diversity, score_system
from raycap.metrics.cider import DocumentFrequency
from raycap.metrics.ptb import tokenize

CAPTIONS = {"a": "a man on a", "b": "a dog runs", "c": "a dog runs"}
REFERENCES = {"a": ["a woman walks", "someone walks"], "b": ["the dog runs", "a dog"], "c": ["her dog runs", "a dog"]}
FREQUENCY = DocumentFrequency.from_references(
    {image: [tokenize(text) for text in texts] for image, texts in REFERENCES.items()}
)
EYE = np.eye(3, dtype=np.float32)
PICTURES = dict(zip("abc", EYE, strict=True))


class EyesAndEars:
    """Embeds the captions of a and b as their own pictures, and c's words as those of b, which they are."""

    name, prompt = "judge", "A photo depicts "

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([EYE[0] if "man" in text else EYE[1] for text in texts])


def figures(training: Sequence[Sequence[str]] = (), judge: Judge | None = None) -> Mapping[str, float]:
    return score_system(CAPTIONS, REFERENCES, ("bleu",), judge, training).metrics


def test_surface_by_hand() -> None:
    found = figures()
    assert found["length"] == pytest.approx((4 + 3 + 3) / 3)
    assert found["vocabulary"] == 5  # a man on dog runs
    assert found["bad_ending_rate"] == pytest.approx(1 / 3)
    assert found["unsupported_gender_rate"] == pytest.approx(1 / 3), "a man, where the references know a woman"
    assert "bleu_4" in found


def test_diversity_of_samples_at_both_ends() -> None:
    alike = sample_diversity({image: ["a dog runs here"] * 3 for image in REFERENCES}, FREQUENCY)
    apart = {"a": ["her dog runs", "a woman walks", "the"], "b": ["the dog", "someone walks", "a"],
             "c": ["her dog", "a woman", "runs"]}  # fmt: skip
    found = sample_diversity(apart, FREQUENCY)
    assert alike["mbleu_4"] == pytest.approx(1, abs=1e-8)
    assert alike["self_cider"] == pytest.approx(0, abs=1e-6)
    assert alike["distinct_1"] == pytest.approx(4 / 12)
    assert found["mbleu_4"] < 0.01
    assert found["self_cider"] > 0.7  # not 1: a word that every image has weighs nothing
    assert found["distinct_1"] == pytest.approx((7 / 7 + 5 / 5 + 5 / 5) / 3)


def test_novel_captions_are_those_that_no_training_caption_says() -> None:
    assert "novel_share" not in figures()
    assert figures([tokenize("A dog runs."), tokenize("a cat")])["novel_share"] == pytest.approx(1 / 3)


def test_captions_look_for_their_own_picture_where_there_is_a_judge() -> None:
    assert not any(name.startswith("self_retrieval") for name in figures())
    clip = EyesAndEars()
    found = figures(judge=Judge(clip, PICTURES, judge_references(clip, REFERENCES)))  # type: ignore[arg-type]
    # c's caption is nearest to b's picture; behind it, a's and c's share the next two places
    assert found["self_retrieval_r1"] == pytest.approx(2 / 3)
    assert found["self_retrieval_r5"] == 1
