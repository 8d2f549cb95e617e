"""`STORAGE/<name>/results.json`: every figure that tables and plots show, one row a system, split, decoding and seed.

    {"schema_version": 1, "rows": [{"stage", "label", "split", "decoding", "seed", "metrics", "seconds", ...}]}

A split that is reported on again replaces its rows; the file is always whole. Rows hold what was measured, at full
precision; rounding is the business of those who show them.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from raycap.errors import DataError, WorkFailed
from raycap.whole_file import write_whole

SCHEMA_VERSION = 1
RESULTS = "results.json"


@dataclass(frozen=True)
class ResultRow:
    """The figures of one system on one split with one decoding.

    Args:
        stage: whose checkpoint it is, such as `scst`.
        label: how tables call it, such as `mle_best`, `mle_continued`, `scst`.
        metrics: by key (`cider_d`, `bleu_4`, ...), fractions; CIDEr-D as coco-caption prints it. What could not be
            measured is in `unavailable` with the reason, never in here as 0.
        seconds: wall clock of the training that made the system; None when it was not trained here.
        steps: optimizer steps of that training.
        num_images: how many images the metrics are over.
        signature: how the metrics were computed, as `raycap score` gives it.
        judge: the CLIP behind `clipscore`; it never rewarded this system.

    Raises:
        WorkFailed: a metric is NaN or infinite, or measured and unavailable at once.
    """

    stage: str
    label: str
    split: str
    decoding: str
    seed: int
    metrics: Mapping[str, float]
    seconds: float | None = None
    steps: int | None = None
    num_images: int | None = None
    signature: str | None = None
    judge: str | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise WorkFailed(f"{self.label} on {self.split} has a metric that is no number", key=name, value=value)
            if name in self.unavailable:
                raise WorkFailed(f"{self.label} on {self.split} has a metric both measured and unavailable", key=name)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What makes it the same row when it is measured again."""
        return self.stage, self.label, self.split, self.decoding, self.seed

    def to_json(self) -> dict[str, Any]:
        """The required keys, and the optional ones that are set."""
        optional = ("steps", "num_images", "signature", "judge", "unavailable")
        values = {**asdict(self), "metrics": dict(self.metrics), "unavailable": dict(self.unavailable)}
        return {name: value for name, value in values.items() if name not in optional or value not in (None, {})}


@dataclass(frozen=True)
class Summary:
    """Rows that differ in their seed only: mean and sample standard deviation of each metric over the seeds.

    Args:
        rows: in the order of their seeds.
        mean, std: by metric that every seed has; `std` is empty with one seed (it says nothing then).
        unavailable: why, by metric that one of the seeds lacks.
    """

    stage: str
    label: str
    split: str
    decoding: str
    rows: tuple[ResultRow, ...]
    mean: Mapping[str, float]
    std: Mapping[str, float]
    seconds: float | None
    unavailable: Mapping[str, str]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(row.seed for row in self.rows)

    def values(self, metric: str) -> tuple[float, ...]:
        """One value a seed; empty when a seed lacks the metric."""
        return tuple(row.metrics[metric] for row in self.rows) if metric in self.mean else ()


def read_results(path: Path) -> list[ResultRow]:
    """The rows in the order of the file; [] when there is no file yet.

    Raises:
        DataError: no JSON, another schema version, or a row with missing, unknown or ill-typed keys.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", key=str(path), remedy="delete it and evaluate again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"expected schema_version {SCHEMA_VERSION}", key=str(path), value=version)
    rows = data.get("rows")
    if not isinstance(rows, list):
        raise DataError("expected a list of rows", key=f"{path}: rows", value=rows)
    return [_row(entry, f"{path}: rows[{number}]") for number, entry in enumerate(rows)]


def write_results(path: Path, rows: Iterable[ResultRow]) -> None:
    """Writes the file whole or not at all; its folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"schema_version": SCHEMA_VERSION, "rows": [row.to_json() for row in rows]}
    write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def replace_split(path: Path, split: str, rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Puts rows in the place of all rows of a split: those of models that are there no more do not stay beside them.

    Jobs that report on different splits at the same time may write one file: a lock beside it lets them in one by one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        kept = [row for row in read_results(path) if row.split != split]
        merged = [*kept, *rows]
        write_results(path, merged)
    return merged


def mean_std(rows: Sequence[ResultRow]) -> list[Summary]:
    """Rows joined over seeds, by label, split and decoding (and stage).

    What can be compared stands together: the order is that of first appearance of split and decoding, then of label.
    """
    groups: dict[tuple[str, str, str, str], dict[int, ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.key[:4], {})[row.seed] = row
    blocks = list(dict.fromkeys(key[2:] for key in groups))
    ordered = sorted(groups, key=lambda key: blocks.index(key[2:]))
    return [_summary([groups[key][seed] for seed in sorted(groups[key])]) for key in ordered]


def _summary(rows: Sequence[ResultRow]) -> Summary:
    first = rows[0]
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    everywhere = [name for name in names if all(name in row.metrics for row in rows)]
    # A mean over only those seeds that have the metric would compare different things: better none, and say why.
    unavailable = {name: why for row in rows for name, why in row.unavailable.items()}
    for name in names:
        if name not in everywhere:
            lacking = ", ".join(str(row.seed) for row in rows if name not in row.metrics)
            unavailable.setdefault(name, f"not measured for seed {lacking}")
    columns = {name: [row.metrics[name] for row in rows] for name in everywhere}
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Summary(
        stage=first.stage,
        label=first.label,
        split=first.split,
        decoding=first.decoding,
        rows=tuple(rows),
        mean={name: fmean(values) for name, values in columns.items()},
        std={name: stdev(values) for name, values in columns.items()} if len(rows) > 1 else {},
        seconds=fmean(seconds) if len(seconds) == len(rows) else None,
        unavailable=unavailable,
    )


_KNOWN = {known.name for known in fields(ResultRow)}
_REQUIRED = ("stage", "label", "split", "decoding", "seed", "metrics", "seconds")


def _row(entry: Any, where: str) -> ResultRow:
    if not isinstance(entry, dict):
        raise DataError("expected an object", key=where, value=entry)
    for name in _REQUIRED:
        if name not in entry:
            raise DataError(f"the row lacks {name!r}", key=where)
    unknown = sorted(entry.keys() - _KNOWN)
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}", key=where, remedy=f"known: {', '.join(sorted(_KNOWN))}")
    for name in ("stage", "label", "split", "decoding"):
        if not isinstance(entry[name], str):
            raise DataError("expected a string", key=f"{where}.{name}", value=entry[name])
    if type(entry["seed"]) is not int:
        raise DataError("expected a whole number", key=f"{where}.seed", value=entry["seed"])
    metrics = entry["metrics"]
    if not isinstance(metrics, dict) or any(type(value) not in (int, float) for value in metrics.values()):
        raise DataError("expected numbers by metric", key=f"{where}.metrics", value=metrics)
    return ResultRow(**entry)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
