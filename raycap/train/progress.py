"""Progress of long work as lines: how far, how fast, how long still. One line every few seconds, wherever it is read.

Lines and not a bar, because `ray job submit` follows a log: a bar that rewrites itself would fill it with noise.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO


def clock(seconds: float) -> str:
    """12 → "0:12", 4000 → "1:06:40"."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Progress:
    """Progress of one stage.

    Args:
        label: the stage.
        unit: what is counted.
        every_s: seconds between two lines; the last one is always printed.
    """

    def __init__(self, label: str, unit: str, *, every_s: float = 5.0, out: TextIO | None = None) -> None:
        self.label, self.unit, self.every_s, self.out = label, unit, every_s, out or sys.stdout
        self._printed = -float("inf")
        self._marks: deque[tuple[float, int]] = deque(maxlen=50)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Print a line when it is time: the rate is that of the last 50 updates."""
        now = time.monotonic()
        if self._marks and done == self._marks[-1][1]:  # asked again before anything moved
            return
        if self._marks and done < self._marks[-1][1]:  # it began again at a checkpoint
            self._marks.clear()
        self._marks.append((now, done))
        if now - self._printed < self.every_s and done < total:
            return
        self._printed = now
        (then, before) = self._marks[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        left = f"ETA {clock((total - done) / rate)}" if rate > 0 and done < total else ("done" if done >= total else "")
        speed = f"{rate:.1f} {self.unit}/s" if rate else ""
        share = f"{100 * done / total:3.0f}%" if total else ""
        parts = [f"{self.label:<14}", f"{done}/{total} {self.unit}", share, speed, left, note]
        print("  ".join(part for part in parts if part), file=self.out, flush=True)
