"""How well metrics agree with people: judged captions read from the published files, scored, and correlated (Kendall).

A row is a judged pair of an image and a caption. All corpus statistics (CIDEr's document frequencies and N) run over
rows and not over images, and BLEU is sentence BLEU: so the published values were made.

    flickr8k-crowdflower   47,830 rows of share of yes; an image's references are its five captions less every caption
                           that any of its rows judges (compared by text, one occurrence each); τ-b is what is published
    flickr8k-expert        5,822 rows of three scores 1..4; rows whose caption is among the image's references are left
                           out, every score is a judgement of its own; τ-c is what is published
    FILE                   JSONL: {"image_id", "caption", "references", "score"} a line

Source: Hodosh et al. 2013 (the judgements); Hessel et al. 2021, "CLIPScore", appendix (how metrics are held to them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raycap.errors import DataError
from raycap.metrics.correlation import count_pairs
from raycap.metrics.files import captions_of, image_id_of, parse_json, text_of
from raycap.metrics.score import score_captions

CROWDFLOWER, EXPERT = "flickr8k-crowdflower", "flickr8k-expert"
_FILES = {CROWDFLOWER: "CrowdFlowerAnnotations.txt", EXPERT: "ExpertAnnotations.txt"}
_TOKENS = "Flickr8k.token.txt"
_FORM = 'expected {"image_id", "caption", "references": ["...", ...], "score": number} a line'


@dataclass(frozen=True)
class Judgements:
    """R judged captions.

    Attributes:
        captions: length R.
        references: length R, those that the caption is compared with.
        scores: length R, one or more judgements each.
    """

    captions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]


def read_judgements(name: str, root: Path | None = None) -> Judgements:
    """Judgements by name (`flickr8k-crowdflower`, `flickr8k-expert`, read from `root`), or a JSONL file.

    Raises:
        DataError: a file is missing, a line malformed, a caption id unknown, or fewer than two rows are there.
    """
    if name not in _FILES:
        rows = _read_jsonl(Path(name))
    elif root is None:
        raise DataError("needs the folder of its files", key="judgements", value=name, remedy="give --root")
    else:
        read = _crowdflower if name == CROWDFLOWER else _expert
        rows = read(root / _FILES[name], _read_captions(root / _TOKENS))
    if len(rows) < 2:
        raise DataError("fewer than two judged captions", key="judgements", value=name)
    captions, references, scores = zip(*rows, strict=True)
    return Judgements(captions, references, scores)


def correlate(judgements: Judgements, metrics: Sequence[str] = ("bleu", "rouge", "cider")) -> dict[str, Any]:
    """`{"schema_version": 1, "metrics": {key: {"tau_b", "tau_c", "n"}}, "unavailable": {...}}`, τ as fractions.

    Args:
        metrics: names of `raycap.metrics.score.METRICS`.

    Raises:
        Refused: an unknown metric, or a row without references.
    """
    rows = [f"row {number}" for number in range(1, len(judgements.captions) + 1)]
    scored = score_captions(
        dict(zip(rows, judgements.captions, strict=True)), dict(zip(rows, judgements.references, strict=True)), metrics
    )
    times = [len(scores) for scores in judgements.scores]
    human = np.array([score for scores in judgements.scores for score in scores])
    found: dict[str, Any] = {}
    unavailable = dict(scored.unavailable)
    for key in scored.metrics:
        ours = np.repeat([scored.per_image[row][key] for row in rows], times)
        pairs = count_pairs(ours, human)
        if math.isnan(pairs.tau_b()):
            unavailable[key] = "all values are equal: there is no order to compare"
        else:
            found[key] = {"tau_b": pairs.tau_b(), "tau_c": pairs.tau_c(), "n": len(human)}
    return {"schema_version": 1, "metrics": found, "unavailable": unavailable, "signature": scored.signature}


_Row = tuple[str, tuple[str, ...], tuple[float, ...]]


def _crowdflower(path: Path, captions: dict[str, str]) -> list[_Row]:
    """Columns: image, caption id, share of yes, number of yes, number of no."""
    judged: list[tuple[str, str, float]] = []
    for where, (image, caption_id, *scores) in _columns(path, 5):
        judged.append((image, _caption(captions, caption_id, where), _number(scores[0], where)))
    texts: dict[str, list[str]] = {}
    for image, caption, _ in judged:
        texts.setdefault(image, [])
        if caption not in texts[image]:
            texts[image].append(caption)
    own = _by_image(captions)
    references = {image: _less(own.get(image, []), seen) for image, seen in texts.items()}
    return [(caption, references[image], (score,)) for image, caption, score in judged]


def _expert(path: Path, captions: dict[str, str]) -> list[_Row]:
    """Columns: image, caption id, three scores."""
    own = _by_image(captions)
    rows: list[_Row] = []
    for where, (image, caption_id, *scores) in _columns(path, 5):
        caption, references = _caption(captions, caption_id, where), tuple(own.get(image, ()))
        if caption not in references:
            rows.append((caption, references, tuple(_number(score, where) for score in scores)))
    return rows


def _less(captions: Sequence[str], judged: Sequence[str]) -> tuple[str, ...]:
    """The captions less one occurrence of each judged text."""
    left = list(captions)
    for caption in judged:
        if caption in left:
            left.remove(caption)
    return tuple(left)


def _read_captions(path: Path) -> dict[str, str]:
    """Caption by id (`name.jpg#0`)."""
    lines = (line.partition("\t") for line in _lines(path) if line.strip())
    return {caption_id.strip(): caption.strip() for caption_id, _, caption in lines}


def _by_image(captions: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for caption_id, caption in captions.items():
        found.setdefault(caption_id.partition("#")[0], []).append(caption)
    return found


def _read_jsonl(path: Path) -> list[_Row]:
    rows: list[_Row] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        rows.append(_judged(line, f"{path}:{number}"))
    return rows


def _judged(line: str, where: str) -> _Row:
    """A line of a file of one's own, read as strictly as the files of `raycap score`."""
    try:
        entry = parse_json(line, where)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", key=where, value=line[:80]) from error
    image = image_id_of(entry, where)
    caption = text_of(entry, "caption", where, _FORM)
    references = captions_of(entry.get("references"), image, where, _FORM)
    if not references or not all(text.strip() for text in references):
        raise DataError("no reference, or one without text", key=where, value=line[:80], remedy=_FORM)
    score = _finite(entry.get("score"))
    if score is None:
        raise DataError("`score` is no finite number", key=where, value=line[:80], remedy=_FORM)
    return caption, tuple(references), (score,)


def _columns(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_lines(path), start=1):
        columns = line.split()
        if columns and len(columns) != count:
            raise DataError(f"expected {count} columns", key=f"{path}:{number}", value=line[:80])
        if columns:
            yield f"{path}:{number}", columns


def _caption(captions: dict[str, str], caption_id: str, where: str) -> str:
    if caption_id not in captions:
        raise DataError(f"no such caption in {_TOKENS}", key=where, value=caption_id)
    return captions[caption_id]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError("expected a number", key=where, value=text)
    return value


def _finite(value: Any) -> float | None:
    """A JSON number as a float; None for anything else, and for what no float can hold."""
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", key="judgements", value=str(path),
                        remedy="name a file that is there, or the folder of the published ones with --root",
                        ) from error  # fmt: skip
