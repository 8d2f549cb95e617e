"""Published systems' captions with the scores that the reference tools gave them (shared data; skipped without it)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from raycap.metrics.files import read_candidates, read_references
from raycap.metrics.java import meteor
from raycap.metrics.ptb import tokenize
from raycap.metrics.score import score_captions

CASES = [
    ("flickr30k", "references.json", "zerocap.candidates.json", "zerocap.golden.json"),
    ("flickr30k", "references.json", "magic.candidates.json", "magic.golden.json"),
    ("flickr30k", "references.json", "clipre.candidates.json", "clipre.golden.json"),
    ("clipscore_example", "refs.json", "good_captions.json", "good.golden.json"),
    ("clipscore_example", "refs.json", "bad_captions.json", "bad.golden.json"),
]
NAMES = [f"{case[0]}-{case[2].split('.')[0]}" for case in CASES]


@pytest.mark.parametrize(("folder", "references", "candidates", "golden"), CASES, ids=NAMES)
def test_equals_the_reference_tools(
    folder: str, references: str, candidates: str, golden: str, conformance: Path
) -> None:
    here = conformance / folder
    expected = json.loads((here / golden).read_text())
    scores = score_captions(read_candidates(here / candidates), read_references(here / references))
    for n, value in enumerate(expected["BLEU"], start=1):
        assert scores.metrics[f"bleu_{n}"] == pytest.approx(value, abs=1e-9)
    assert scores.metrics["rouge_l"] == pytest.approx(expected["ROUGE_L"], abs=1e-9)
    assert scores.metrics["cider_d"] == pytest.approx(expected["CIDEr"], abs=1e-9)
    images = expected["per_image"]["image_id"]
    assert list(scores.per_image) == images
    for key, theirs in (("bleu_4", "BLEU4"), ("rouge_l", "ROUGE_L"), ("cider_d", "CIDEr")):
        ours = [scores.per_image[image][key] for image in images]
        assert ours == pytest.approx(expected["per_image"][theirs], abs=1e-6)


@pytest.mark.parametrize(("folder", "references", "candidates", "golden"), CASES, ids=NAMES)
def test_tokenised_text_has_the_same_digest(
    folder: str, references: str, candidates: str, golden: str, conformance: Path
) -> None:
    here = conformance / folder
    digests = json.loads((here / golden).read_text())["sha256"]
    images = read_candidates(here / candidates)
    sides = {
        "candidates": [[caption] for caption in images.values()],
        "references": list(read_references(here / references).values()),
    }
    for side, captions in sides.items():
        lines = [" ".join(tokenize(caption)) for several in captions for caption in several]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digests[f"{side}_tokenised_file_order"]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "references", "candidates", "golden"), CASES[:3], ids=NAMES[:3])
def test_meteor_equals_the_reference_tool(
    folder: str, references: str, candidates: str, golden: str, conformance: Path, java: str
) -> None:
    _check_meteor(conformance / folder, references, candidates, golden)


def test_meteor_equals_the_reference_tool_on_two_images(conformance: Path, java: str) -> None:
    _check_meteor(conformance / CASES[3][0], *CASES[3][1:])


def _check_meteor(here: Path, references: str, candidates: str, golden: str) -> None:
    expected = json.loads((here / golden).read_text())
    captions, several = read_candidates(here / candidates), read_references(here / references)
    result = meteor(
        [tokenize(caption) for caption in captions.values()],
        [[tokenize(caption) for caption in several[image]] for image in captions],
    )
    assert not isinstance(result, str), result
    assert result[0] == pytest.approx(expected["METEOR"], abs=1e-6)
    assert result[1] == pytest.approx(expected["per_image"]["METEOR"], abs=1e-6)
