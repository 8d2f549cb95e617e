"""Scores of a set of captions: raw strings in, every metric that is asked for and available out.

This is what `raycap score` and the evaluation call. The maths is in the modules of each metric; here candidates and
references are matched by id, tokenised once and handed on, and what could not be computed is named with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from raycap.errors import Refused
from raycap.metrics.bleu import bleu_counts
from raycap.metrics.cider import cider_d_of_index
from raycap.metrics.clipscore import ClipEmbeddings, clip_scores, ref_clip_scores
from raycap.metrics.files import refuse
from raycap.metrics.java import meteor, spice
from raycap.metrics.ptb import tokenize
from raycap.metrics.refcompare import own_refs, pooled
from raycap.metrics.reference_index import Tokens, index_references
from raycap.metrics.rouge import rouge_l

METRICS = ("bleu", "rouge", "cider", "meteor", "spice", "clipscore", "refcompare")
"""What can be asked for: `bleu` yields bleu_1 … bleu_4, `clipscore` also refclipscore, `refcompare` both its kinds."""
_KEYS = {
    "bleu": ("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
    "rouge": ("rouge_l",),
    "cider": ("cider_d",),
    "clipscore": ("refclipscore",),
    "refcompare": ("refcompare_own_refs", "refcompare_pooled"),
}  # what they yield under another name than their own
BY_CLIP = ("clipscore", "refcompare")
"""Those of them that look at the images, through a CLIP."""

_TEXTUAL = {
    "bleu": "bleu(4,closest)",
    "rouge": "rouge-l(beta1.2)",
    "cider": "cider-d(n4,sigma6,df=evaluated references)",
    "meteor": "meteor(1.5,en,norm)",
    "spice": "spice(1.0)",
}


_REFERENCE_REMEDY = "give each image at least one reference with text"


@dataclass(frozen=True)
class Scores:
    """Scores of N images.

    Attributes:
        metrics: corpus scores as fractions (CIDEr-D as coco-caption prints it), by key: bleu_1 … bleu_4, rouge_l,
            cider_d, meteor, spice, clipscore, refclipscore, refcompare_own_refs, refcompare_pooled.
        per_image: image id → the same keys → that image's score.
        unavailable: metric → why it could not be computed.
        num_images: images scored.
        signature: what exactly was computed, for the reader of a report.
        empty_candidates: captions of which tokenisation leaves nothing.
        left_out: candidates and references of images that only one side has; None unless partial scoring was allowed.
    """

    metrics: dict[str, float]
    per_image: dict[str, dict[str, float]]
    unavailable: dict[str, str]
    num_images: int
    signature: str
    empty_candidates: int = 0
    left_out: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The result file's content (schema version 1), without the per-image scores."""
        content: dict[str, Any] = {
            "schema_version": 1,
            "metrics": dict(self.metrics),
            "unavailable": dict(self.unavailable),
            "num_images": self.num_images,
            "signature": self.signature,
            "empty_candidates": self.empty_candidates,
        }
        if self.left_out is not None:
            content["left_out"] = dict(self.left_out)
        return content


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = ("bleu", "rouge", "cider"),
    *,
    embeddings: ClipEmbeddings | None = None,
    allow_partial: bool = False,
) -> Scores:
    """Score one caption for each image.

    Args:
        candidates: image id → caption, untokenised.
        references: image id → reference captions, untokenised.
        metrics: names of `METRICS`.
        embeddings: for clipscore and refcompare.
        allow_partial: score the images that both sides have, and count the others, instead of refusing.

    Raises:
        Refused: an unknown metric; ids that only one side has (unless allowed); an image without references, with an
            empty one, or with nothing but references of which tokenisation leaves nothing; nothing to score.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        remedy = f"choose from {', '.join(METRICS)}"
        raise Refused("unknown metric" if unknown else "no metric", key="metrics", value=unknown, remedy=remedy)
    images, left_out = _match(candidates, references, allow_partial)
    tokens = [tokenize(candidates[image]) for image in images]
    reference_tokens = [[tokenize(caption) for caption in references[image]] for image in images]
    _refuse_wordless(image for image, several in zip(images, reference_tokens, strict=True) if not any(several))
    tables = _Tables(images)
    _score_text(tables, tokens, reference_tokens, metrics)
    _score_java(tables, tokens, reference_tokens, metrics)
    _score_embeddings(tables, embeddings, metrics)
    return Scores(
        metrics=tables.metrics,
        per_image=tables.rows(),
        unavailable=tables.unavailable,
        num_images=len(images),
        signature="|".join([f"raycap-{_version()}", "ptb(stanford-3.4.1)", *tables.signature]),
        empty_candidates=sum(not caption for caption in tokens),
        left_out=left_out if allow_partial else None,
    )


def metric_of(name: str) -> str | None:
    """The metric of `METRICS` that is meant: by its name or by a key of its output; None for neither."""
    return name if name in METRICS else next((metric for metric, keys in _KEYS.items() if name in keys), None)


class _Tables:
    """Scores as they come in: a corpus value and a column of per-image values for each key."""

    def __init__(self, images: Sequence[str]) -> None:
        self.images = images
        self.metrics: dict[str, float] = {}
        self.columns: dict[str, Sequence[float]] = {}
        self.unavailable: dict[str, str] = {}
        self.signature: list[str] = []

    def add(self, key: str, corpus: float, per_image: Any) -> None:
        self.metrics[key] = float(corpus)
        self.columns[key] = np.asarray(per_image, np.float64).tolist()

    def rows(self) -> dict[str, dict[str, float]]:
        keys = list(self.columns)
        if not keys:
            return {image: {} for image in self.images}
        values = zip(*self.columns.values(), strict=True)
        return {image: dict(zip(keys, row, strict=True)) for image, row in zip(self.images, values, strict=True)}


def common_images(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], allow_partial: bool = False
) -> tuple[list[str], dict[str, int]]:
    """The images that can be scored, and how many candidates and references are left out.

    Raises:
        Refused: as `score_captions` does, so that whoever embeds first can ask before the work.
    """
    images, left_out = _match(candidates, references, allow_partial)
    _refuse_wordless(image for image in images if not any(map(tokenize, references[image])))
    return images, left_out


def _match(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], allow_partial: bool
) -> tuple[list[str], dict[str, int]]:
    images = [image for image in candidates if image in references]
    without_reference = [image for image in candidates if image not in references]
    without_candidate = [image for image in references if image not in candidates]
    if not allow_partial:
        remedy = "complete the files, or allow partial scoring (--allow-partial)"
        refuse(without_reference, "candidate image(s) have no references", "references", remedy)
        refuse(without_candidate, "image(s) with references have no candidate", "candidates", remedy)
    if not images:
        raise Refused("candidates and references have no image in common", key="candidates", value=len(candidates))
    _check_references(images, references)
    return images, {"candidates": len(without_reference), "references": len(without_candidate)}


def _check_references(images: Sequence[str], references: Mapping[str, Sequence[str]]) -> None:
    for image in images:
        if isinstance(references[image], str):
            raise Refused("the references of an image are one string, no list", key="references", value=image)
    bare = [image for image in images if not references[image]]
    refuse(bare, "image(s) have no reference", "references", _REFERENCE_REMEDY)
    blank = [image for image in images if not all(caption.strip() for caption in references[image])]
    refuse(blank, "image(s) have an empty reference", "references", _REFERENCE_REMEDY)


def _refuse_wordless(images: Iterable[str]) -> None:
    """Nothing can agree with references without words: any candidate would score 0, and an empty one ROUGE-L 1."""
    what = "image(s) have empty references: tokenisation leaves nothing of any of them"
    refuse(list(images), what, "references", _REFERENCE_REMEDY)


def _score_text(
    tables: _Tables, tokens: Sequence[Tokens], references: Sequence[Sequence[Tokens]], metrics: Sequence[str]
) -> None:
    if "bleu" in metrics or "cider" in metrics:
        index, _ = index_references(dict(zip(tables.images, references, strict=True)))
    if "bleu" in metrics:
        counts = bleu_counts(tokens, np.arange(len(tokens)), index)
        for n, (corpus, per_image) in enumerate(zip(counts.total().scores()[0], counts.scores().T, strict=True), 1):
            tables.add(f"bleu_{n}", corpus, per_image)
    if "rouge" in metrics:
        tables.add("rouge_l", *rouge_l(tokens, references))
    if "cider" in metrics:
        tables.add("cider_d", *cider_d_of_index(tokens, index))
    tables.signature += [_TEXTUAL[name] for name in ("bleu", "rouge", "cider") if name in metrics]


def _score_java(
    tables: _Tables, tokens: Sequence[Tokens], references: Sequence[Sequence[Tokens]], metrics: Sequence[str]
) -> None:
    for name, tool in (("meteor", meteor), ("spice", spice)):
        if name not in metrics:
            continue
        result = tool(tokens, references)
        if isinstance(result, str):
            tables.unavailable[name] = result
        else:
            tables.add(name, result[0], result[1])
            tables.signature.append(_TEXTUAL[name])


def _score_embeddings(tables: _Tables, embeddings: ClipEmbeddings | None, metrics: Sequence[str]) -> None:
    wanted = [name for name in BY_CLIP if name in metrics]
    if not wanted:
        return
    if embeddings is None:
        for name in wanted:
            tables.unavailable[name] = "no CLIP embeddings: give the images and a CLIP model"
        return
    image, candidate = embeddings.pairs(tables.images)
    reference, owner = embeddings.reference_rows(tables.images)
    if "clipscore" in metrics:
        scores = clip_scores(image, candidate)
        tables.add("clipscore", scores.mean(), scores)
        if reference is not None:
            with_references = ref_clip_scores(image, candidate, reference, owner)
            tables.add("refclipscore", with_references.mean(), with_references)
    if "refcompare" in metrics and reference is not None:
        for key, kind in (("refcompare_own_refs", own_refs), ("refcompare_pooled", pooled)):
            shares = kind(image, candidate, reference, owner)
            tables.add(key, shares.mean(), shares)
    if reference is None:
        for name in ("refclipscore" if "clipscore" in metrics else "", "refcompare" if "refcompare" in metrics else ""):
            if name:
                tables.unavailable[name] = "no embeddings of the references"
    tables.signature.append(f"{'+'.join(wanted)}(clip={embeddings.name},prompt={embeddings.prompt.strip()!r},w2.5)")


def _version() -> str:
    try:
        return version("raycap")
    except PackageNotFoundError:  # run from a checkout
        return "dev"
