"""A stage's log, followed while another process writes it, as progress on this one's terminal."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycap.train.bottleneck import bottleneck, typical
from raycap.train.progress import Progress
from raycap.train.tail import Tail

WINDOW = 50
"""Steps over which it is told who waits for whom."""


@contextmanager
def followed(folder: Path, label: str) -> Iterator[None]:
    """Follow a stage's log.jsonl while it is written, and print progress from it."""
    stop = threading.Event()
    progress, tail = Progress(label, "steps"), Tail(folder / "log.jsonl")

    def follow() -> None:
        last: dict[str, Any] = {}
        recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        ended = False
        while not ended:
            ended = stop.wait(1.0)  # one more read after the end: the last lines belong to it
            try:
                records, anew = tail.look()
            except OSError:
                continue  # the storage does not answer for a moment
            if anew:
                recent.clear()
            newest: dict[str, Any] = {}
            for record in records:
                last |= record
                if "warning" in record:
                    print(f"{label:<14}  warning: {record['warning']}", flush=True)
                if "step" in record and "total_steps" in record:
                    newest = record
                    recent.append(record)
            # Once a look and not once a line: the steps of an earlier job, read at a stroke, are not this one's rate.
            if newest:
                parts = [describe(last), bottleneck(typical(recent))]
                progress.update(newest["step"], newest["total_steps"], "  ".join(filter(None, parts)))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


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
    return "  ".join(parts)
