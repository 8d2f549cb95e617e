"""Scores of raw strings: the result's form, what is refused, and what is counted instead."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from raycap.errors import DataError, Refused
from raycap.metrics import score as score_module
from raycap.metrics.clipscore import ClipEmbeddings
from raycap.metrics.ptb import tokenize
from raycap.metrics.reference_index import Tokens
from raycap.metrics.score import METRICS, common_images, metric_of, score_captions

CANDIDATES = {"1": "A man is speaking.", "2": "Rain falls."}
REFERENCES = {
    "1": ["A man speaks.", "someone speaks", "A man is speaking while a bird is chirping in the background"],
    "2": ["Rain is falling hard on a surface."],
}


def test_published_vector_from_raw_strings() -> None:
    scores = score_captions(CANDIDATES, REFERENCES)
    assert scores.metrics["cider_d"] == pytest.approx(0.9613547163493905, abs=1e-12)
    assert scores.per_image["2"]["cider_d"] == pytest.approx(0.5586545156664785, abs=1e-12)
    assert list(scores.metrics) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert list(scores.per_image) == ["1", "2"]
    assert list(scores.per_image["1"]) == list(scores.metrics)


def test_a_no_break_space_at_a_token_s_end_is_scored_as_pycocoevalcap_does() -> None:
    """The PTB tokenizer leaves it at a web address's front; BLEU and CIDEr split there, ROUGE-L does not."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    candidates = {"1": "\u00a0example.com is up", "2": "it is example.com", "3": "a dog runs"}
    references = {
        "1": ["example.com is down", "the site is up"],
        "2": ["it is \u00a0example.com\u00a0", "\u00a0example.com"],
        "3": ["a dog walks"],
    }
    assert tokenize(candidates["1"])[0] == "\u00a0example.com"
    res = {image: [" ".join(tokenize(text))] for image, text in candidates.items()}
    gts = {image: [" ".join(tokenize(text)) for text in texts] for image, texts in references.items()}
    ours = score_captions(candidates, references)
    assert [ours.metrics[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(
        bleu().compute_score(gts, res, verbose=0)[0]
    )
    assert ours.metrics["rouge_l"] == pytest.approx(rouge().compute_score(gts, res)[0], abs=1e-12)
    assert ours.metrics["cider_d"] == pytest.approx(cider().compute_score(gts, res)[0], abs=1e-12)


def test_json_form() -> None:
    content = score_captions(CANDIDATES, REFERENCES, ["cider"]).to_json()
    assert list(content) == ["schema_version", "metrics", "unavailable", "num_images", "signature", "empty_candidates"]
    assert content["schema_version"] == 1
    assert content["empty_candidates"] == 0
    assert content["num_images"] == 2
    assert content["unavailable"] == {}
    assert "cider-d(n4,sigma6,df=evaluated references)" in content["signature"]
    assert "bleu" not in content["signature"]
    json.dumps(content, allow_nan=False)


def test_order_of_files_does_not_matter() -> None:
    turned = {image: REFERENCES[image] for image in reversed(list(REFERENCES))}
    assert score_captions(CANDIDATES, turned).metrics == score_captions(CANDIDATES, REFERENCES).metrics


def test_empty_candidates_are_scored_and_counted() -> None:
    scores = score_captions({**CANDIDATES, "3": "", "4": " . "}, {**REFERENCES, "3": ["a dog"], "4": ["a cat"]})
    assert scores.to_json()["empty_candidates"] == 2
    assert scores.per_image["3"]["cider_d"] == scores.per_image["3"]["rouge_l"] == 0.0
    assert scores.num_images == 4


@pytest.mark.parametrize(
    ("candidates", "references", "named"),
    [
        ({**CANDIDATES, "3": "x"}, REFERENCES, "'3'"),
        ({"1": "x"}, REFERENCES, "'2'"),
        (CANDIDATES, {**REFERENCES, "2": []}, "'2'"),
        (CANDIDATES, {**REFERENCES, "2": ["a dog", " "]}, "'2'"),
        (CANDIDATES, {**REFERENCES, "2": ["."]}, "['2']: 1 image(s) have empty references"),
        (CANDIDATES, {**REFERENCES, "2": [" . ", "😀", "&nbsp;"]}, "['2']: 1 image(s) have empty references"),
        ({}, {}, "no image in common"),
    ],
)
def test_refused_by_name(candidates: dict[str, str], references: dict[str, list[str]], named: str) -> None:
    for check in (score_captions, common_images):
        with pytest.raises(Refused) as refused:
            check(candidates, references)
        assert named in str(refused.value)


def test_references_without_words_beside_one_with_words_are_scored_as_pycocoevalcap_does() -> None:
    """A reference of no words has length 0 for BLEU's penalty, no n-gram, and equals an empty candidate for ROUGE-L."""
    scorers = [pytest.importorskip(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "rouge", "cider")]
    candidates = {"1": "a dog", "2": "", "3": "rain falls on a roof", "4": "."}
    references = {"1": [".", "a dog runs"], "2": ["a cat", "😀"], "3": ["rain falls", "!", "..."], "4": [".", "a", "."]}
    res = {image: [" ".join(tokenize(text))] for image, text in candidates.items()}
    gts = {image: [" ".join(tokenize(text)) for text in texts] for image, texts in references.items()}
    ours = score_captions(candidates, references)
    bleu, each_bleu = scorers[0].Bleu().compute_score(gts, res, verbose=0)
    theirs = {f"bleu_{n}": (bleu[n - 1], each_bleu[n - 1]) for n in range(1, 5)}
    theirs |= {"rouge_l": scorers[1].Rouge().compute_score(gts, res)}
    theirs |= {"cider_d": scorers[2].Cider().compute_score(gts, res)}
    for key, (corpus, each) in theirs.items():
        assert ours.metrics[key] == pytest.approx(corpus, abs=1e-12), key
        assert [row[key] for row in ours.per_image.values()] == pytest.approx(list(each), abs=1e-12), key
    assert ours.per_image["2"]["rouge_l"] == 1.0
    assert ours.empty_candidates == 2


def test_many_missing_ids_are_counted_and_a_few_named() -> None:
    with pytest.raises(DataError, match="100 candidate image") as refused:
        score_captions({str(i): "x" for i in range(100)}, {"z": ["x"]})
    assert len(str(refused.value)) < 300


def test_references_as_one_string_are_refused() -> None:
    with pytest.raises(Refused, match="one string"):
        score_captions({"1": "x"}, {"1": "a dog"})  # type: ignore[dict-item]


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(Refused, match="choose from bleu"):
        score_captions(CANDIDATES, REFERENCES, ["blue"])


def test_a_metric_goes_by_its_name_and_by_every_key_of_its_output() -> None:
    rng = np.random.default_rng(0)
    vectors = {key: rng.normal(size=8) for key in CANDIDATES}
    references = {key: rng.normal(size=(len(several), 8)) for key, several in REFERENCES.items()}
    embeddings = ClipEmbeddings("toy", vectors, vectors, references)
    for metric in METRICS:
        assert metric_of(metric) == metric
        if metric not in ("meteor", "spice"):  # their key is their name
            keys = score_captions(CANDIDATES, REFERENCES, [metric], embeddings=embeddings).metrics
            assert {metric_of(key) for key in keys} == {metric}
    assert metric_of("bleu_5") is metric_of("") is None


def test_partial_scoring_counts_what_is_left_out() -> None:
    scores = score_captions({**CANDIDATES, "3": "x"}, {**REFERENCES, "4": [], "5": ["y"]}, allow_partial=True)
    assert scores.to_json()["left_out"] == {"candidates": 1, "references": 2}
    assert scores.metrics == score_captions(CANDIDATES, REFERENCES).metrics
    complete = score_captions(CANDIDATES, REFERENCES, allow_partial=True)
    assert complete.to_json()["left_out"] == {"candidates": 0, "references": 0}


def test_what_cannot_be_computed_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_java(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> str:
        return "no Java"

    monkeypatch.setattr(score_module, "meteor", no_java)
    scores = score_captions(CANDIDATES, REFERENCES, ["rouge", "meteor", "clipscore", "refcompare"])
    assert list(scores.metrics) == ["rouge_l"]
    assert scores.unavailable["meteor"] == "no Java"
    assert set(scores.unavailable) == {"meteor", "clipscore", "refcompare"}
    assert "meteor" not in scores.signature


def test_only_unavailable_metrics_leave_empty_rows() -> None:
    scores = score_captions(CANDIDATES, REFERENCES, ["clipscore"])
    assert scores.metrics == {}
    assert scores.per_image == {"1": {}, "2": {}}


def test_metrics_on_embeddings() -> None:
    rng = np.random.default_rng(0)
    image = {key: rng.normal(size=8) for key in CANDIDATES}
    references = {key: rng.normal(size=(len(several), 8)) for key, several in REFERENCES.items()}
    embeddings = ClipEmbeddings("ViT-B-32/openai", image, image, references)
    scores = score_captions(CANDIDATES, REFERENCES, ["clipscore", "refcompare"], embeddings=embeddings)
    assert scores.metrics["clipscore"] == pytest.approx(2.5, abs=1e-5)
    assert scores.metrics["refcompare_own_refs"] == scores.metrics["refcompare_pooled"] == 1.0
    assert 0 <= scores.per_image["1"]["refclipscore"] <= 2
    assert "ViT-B-32/openai" in scores.signature


def test_without_reference_embeddings_the_rest_is_scored() -> None:
    vectors = {key: [1.0, 0.0] for key in CANDIDATES}
    embeddings = ClipEmbeddings("toy", vectors, vectors)
    scores = score_captions(CANDIDATES, REFERENCES, ["clipscore", "refcompare"], embeddings=embeddings)
    assert list(scores.metrics) == ["clipscore"]
    assert set(scores.unavailable) == {"refclipscore", "refcompare"}
