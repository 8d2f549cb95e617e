"""A system on any data set that an importer reads: every picture of a split captioned, scored and shown.

The data set goes through the same checks as a run's own (`prepare`), and nothing is left out without being counted.
Each picture is opened once for all: encoder, decodings and judge take it in one pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import raycap
from raycap.data.detect import detect_format, import_dataset
from raycap.data.images import MAX_PIXELS
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.schema import SPLITS
from raycap.data.subsets import DEFAULT_SHARES
from raycap.errors import DataError
from raycap.evaluate.judge import Judge, judge_references
from raycap.evaluate.pictures import picture_batches
from raycap.evaluate.report import Example, Report
from raycap.evaluate.results import ResultRow
from raycap.evaluate.scoring import score_system
from raycap.evaluate.system import Decoding, System
from raycap.metrics.score import BY_CLIP, Scores
from raycap.models.clip import Clip
from raycap.models.origin import Origin
from raycap.train.journal import read_log

_NO_CAPTION = "image_without_caption"


@dataclass(frozen=True)
class Split:
    """The evaluated part of a data set: ids in order, each with its photograph and its references.

    Attributes:
        name: `train`, `dev`, `test`, or `all` of them.
        root, format: where and as what it was read.
        report: what was wrong with it.
    """

    name: str
    root: Path
    format: str
    paths: Mapping[str, Path]
    references: Mapping[str, tuple[str, ...]]
    report: InputReport


@dataclass(frozen=True)
class Evaluation:
    """Captions and scores of a system on a split, by decoding (`greedy`, `beam`)."""

    split: Split
    decodings: Mapping[str, Decoding]
    captions: Mapping[str, Mapping[str, str]]
    scores: Mapping[str, Scores]
    judge: str | None

    def metrics_json(self) -> dict[str, Any]:
        """`{"greedy": {...}, "beam": {...}}`, each as `raycap score` prints it for the same captions."""
        return {name: _without_surface(scores).to_json() for name, scores in self.scores.items()}


def read_split(
    root: Path,
    *,
    format: str = "auto",
    split: str = "test",
    skip: Sequence[str] | str = (),
    seed: int = 0,
    shares: Mapping[str, float] = DEFAULT_SHARES,
    like: str = "auto",
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
    when_refused: Callable[[InputReport], None] | None = None,
) -> Split:
    """Import and check one split.

    Args:
        split: one of train, dev, test, or `all`.
        skip: kinds of bad input that are left out and counted instead of refused (see `InputReport`).
        seed, shares: of the split by hash, where a format that may lack splits lacks them. Those that the system was
            trained with, so that none of its training pictures comes into another split of its own data set.
        like: the format that its own data set was read as; `auto` takes it where it fits, for the same reason.
        when_refused: gets the report before its faults are refused: what it writes, the message names.

    Raises:
        DataError: no such data set or split; faults that `skip` does not allow; no image with a caption.
    """
    report = InputReport(skip)
    report.when_refused = when_refused
    format = detect_format(root, like) if format == "auto" else format
    splits = None if split == "all" else {split}
    records = import_dataset(root, format=format, splits=splits, report=report, seed=seed, shares=shares)
    if not records:
        report.raise_if_refused()
        raise DataError(f"no image of the data set is in this split ({report.summary()})", key="split", value=split,
                        remedy="name another one, or all")  # fmt: skip
    captioned = [record for record in records if record.captions]
    if not captioned:
        report.raise_if_refused()
        raise DataError(f"none of its {len(records)} images has a caption to compare with", key="data.root",
                        value=str(root), remedy="`raycap caption` captions pictures without scores")  # fmt: skip
    # what importers only note is a fault here: an image without references cannot be scored
    report.notes = [note for note in report.notes if note.kind != _NO_CAPTION]
    for record in records:
        if not record.captions:
            report.add(_NO_CAPTION, record.image_id, "no caption to compare with")
    with tempfile.TemporaryDirectory(prefix="raycap-evaluate-") as folder:
        dataset = prepare(captioned, Path(folder), report=report, select_size=0, max_pixels=max_pixels,
                          progress=progress, report_file=None)  # fmt: skip
        ids = [i for name in (SPLITS if split == "all" else (split,)) for i in dataset.ids(name)]
        paths = {image_id: dataset.path(image_id).absolute() for image_id in ids}
        return Split(split, root, format, paths, {i: dataset.references(i) for i in ids}, report)


def evaluate_system(
    system: System,
    split: Split,
    metrics: Sequence[str],
    *,
    beam_size: int,
    batch_size: int,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    when_captioned: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda captions: None,
) -> Evaluation:
    """Greedy and beam captions of every picture, and their scores.

    Args:
        metrics: of `raycap.metrics.score.METRICS`; those by CLIP are the judge's, or unavailable.
        batch_size: pictures decoded at once.
        when_captioned: gets the captions by decoding before they are scored: a metric that fails loses none of them.

    Raises:
        UnusableImage: a picture went bad since it was checked.
    """
    judge = system.judge() if set(BY_CLIP) & set(metrics) else "not asked for"
    decodings = {"greedy": Decoding("greedy"), "beam": Decoding("beam", beam_size=beam_size)}
    captions: dict[str, dict[str, str]] = {name: {} for name in decodings}
    seen: dict[str, np.ndarray] = {}
    ids = list(split.paths)
    progress(0, len(ids))
    for batch in picture_batches(list(split.paths.values()), batch_size=batch_size, max_pixels=max_pixels):
        for opened in batch:
            if opened.error is not None:
                raise opened.error
        pictures = [opened.picture for opened in batch if opened.picture is not None]
        names = [ids[opened.index] for opened in batch]
        features = system.features(pictures)
        for name, decoding in decodings.items():
            made = system.caption(features, decoding)
            captions[name].update({image_id: spoken[0] for image_id, spoken in zip(names, made, strict=True)})
        if isinstance(judge, Clip):
            seen.update(zip(names, judge.embed_images(pictures), strict=True))
        progress(batch[-1].index + 1, len(ids))
    when_captioned(captions)
    shown = Judge(judge, seen, judge_references(judge, split.references)) if isinstance(judge, Clip) else judge
    scores = {name: _score(made, split.references, metrics, shown) for name, made in captions.items()}
    return Evaluation(split, decodings, captions, scores, judge.name if isinstance(judge, Clip) else None)


def _score(
    captions: Mapping[str, str],
    references: Mapping[str, tuple[str, ...]],
    metrics: Sequence[str],
    judge: Judge | str,
) -> Scores:
    if isinstance(judge, Judge):
        return score_system(captions, references, metrics, judge)
    scores = score_system(captions, references, metrics, None)
    reasons = {name: judge for name in BY_CLIP if name in metrics}
    return replace(scores, unavailable={**scores.unavailable, **reasons})


def _without_surface(scores: Scores) -> Scores:
    """What `score_system` adds to a score (length, bad endings, vocabulary) is shown in the report only."""
    measured = {key for values in scores.per_image.values() for key in values}
    return replace(scores, metrics={key: value for key, value in scores.metrics.items() if key in measured})


def result_rows(system: System, evaluation: Evaluation) -> list[ResultRow]:
    """A row a decoding, for table and report."""
    about = system.origin.about
    return [
        ResultRow(
            stage=system.origin.stage,
            label=system.origin.stage,
            split=evaluation.split.name,
            decoding=decoding.label,
            seed=int(about.get("seed") or 0),
            metrics=evaluation.scores[name].metrics,
            steps=about.get("step"),
            num_images=evaluation.scores[name].num_images,
            signature=evaluation.scores[name].signature,
            judge=evaluation.judge,
            unavailable=evaluation.scores[name].unavailable,
        )
        for name, decoding in evaluation.decodings.items()
    ]


def evaluation_report(system: System, evaluation: Evaluation) -> Report:
    """The page: figures, pictures with both captions, and what it takes to do it again."""
    split, greedy = evaluation.split, evaluation.scores["greedy"].per_image
    beam = evaluation.decodings["beam"].label
    examples = [
        Example(
            image_id=image_id,
            picture=split.paths[image_id],
            references=references,
            # greedy stands last and has the score: pictures are chosen by it, and two decodings are no before and after
            captions={beam: evaluation.captions["beam"][image_id], "greedy": evaluation.captions["greedy"][image_id]},
            scores={"greedy": greedy[image_id]["cider_d"]} if "cider_d" in greedy[image_id] else {},
        )
        for image_id, references in split.references.items()
    ]
    facts = {
        "checkpoint": f"{system.origin.folder} ({system.origin.name})",
        "encoder": system.encoder.source,
        "data set": f"{split.root} ({split.format}), split {split.name}",
        "images": f"{len(examples):,}, captions {sum(map(len, split.references.values())):,}",
        "input": split.report.summary(),
        "decoding": f"greedy; {beam}; at most {system.origin.recipe.captioner.max_length} tokens",
        "versions": f"raycap {raycap.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    return Report(
        curves=_curves(system.origin),
        title=f"{system.origin.name} on {split.root.name}, split {split.name}",
        rows=result_rows(system, evaluation), examples=examples, facts=facts, seed=system.origin.recipe.seed,
    )  # fmt: skip


def _curves(origin: Origin) -> dict[str, list[dict[str, Any]]]:
    """The training log of the stage that the checkpoint lies in; an export has none."""
    for folder in origin.folder.parents[:2]:  # STAGE/best, STAGE/checkpoints/step-000150
        if (folder / "stage.json").is_file() and (folder / "log.jsonl").is_file():
            return {origin.stage: read_log(folder)}
    return {}
