"""A log that another process writes, read on from where the last look ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Tail:
    """A stage's log.jsonl, there or not yet.

    A resume cuts off what lies after its checkpoint, and may have written more than that by the next look: the line
    that was read last must still be where it was.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._place, self._last = 0, b""

    def look(self) -> tuple[list[dict[str, Any]], bool]:
        """Records that are new (of whole lines; one that is being cut is left out), and whether they are all there are,
        because it is the first look or the log was cut."""
        try:
            with open(self.file, "rb") as log:
                log.seek(self._place - len(self._last))
                if self._place == 0 or log.read(len(self._last)) != self._last:
                    log.seek(0, os.SEEK_SET)
                    self._place, self._last = 0, b""
                anew = self._place == 0
                found = log.read()
        except FileNotFoundError:
            self._place, self._last = 0, b""
            return [], True
        *lines, _ = found.split(b"\n")
        if lines:
            self._last = lines[-1] + b"\n"
            self._place += sum(len(line) + 1 for line in lines)
        return [record for line in lines if (record := _record(line)) is not None], anew

    def age_s(self, now: float) -> float | None:
        """Seconds since something was written, by the clock of the storage; None where there is no log."""
        try:
            return max(0.0, now - self.file.stat().st_mtime)
        except FileNotFoundError:
            return None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
