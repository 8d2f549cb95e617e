"""A stage's log, followed while another process writes it, as progress on this one's terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycap.train.bottleneck import bottleneck
from raycap.train.progress import Progress


@contextmanager
def followed(folder: Path, label: str) -> Iterator[None]:
    """Follow a stage's log.jsonl while it is written, and print progress from it."""
    stop = threading.Event()
    progress = Progress(label, "steps")

    file = folder / "log.jsonl"

    def follow() -> None:
        place = 0
        last: dict[str, Any] = {}
        ended = False
        while not ended:
            ended = stop.wait(1.0)  # one more read after the end: the last lines belong to it
            try:
                lines, place = _new_lines(file, place)
            except OSError:
                continue  # not there yet, or the storage does not answer for a moment
            newest: dict[str, Any] = {}
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # a resume is cutting the log
                last |= record
                if "warning" in record:
                    print(f"{label:<14}  warning: {record['warning']}", flush=True)
                if "step" in record and "total_steps" in record:
                    newest = record
            # Once a look and not once a line: the steps of an earlier job, read at a stroke, are not this one's rate.
            if newest:
                progress.update(newest["step"], newest["total_steps"], describe(last))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _new_lines(file: Path, place: int) -> tuple[list[bytes], int]:
    """Whole lines from a place in a log on, and the place after them.

    Raises:
        OSError: it cannot be read.
    """
    if file.stat().st_size < place:  # a resume cut the log
        place = 0
    with open(file, "rb") as handle:
        handle.seek(place)
        *lines, _ = handle.read().split(b"\n")
    return lines, place + sum(len(line) + 1 for line in lines)


def describe(record: Mapping[str, Any]) -> str:
    """A log record's figures in words: losses, rewards, the last look at `select`."""
    parts = []
    if "train_loss" in record:
        parts.append(f"loss {record['train_loss']:.3f}")
    for key in record:
        if key.startswith("reward/") and key.endswith("/sampled"):
            name = key.split("/")[1]
            parts.append(f"{name} {record[key]:.3f} (greedy {record[f'reward/{name}/greedy']:.3f})")
    if "select_cider" in record:
        parts.append(f"select CIDEr-D {record['select_cider']:.3f}")
    if where := bottleneck(record):
        parts.append(where)
    return "  ".join(parts)
