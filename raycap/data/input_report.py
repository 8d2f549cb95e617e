"""What was wrong with the input: every occurrence collected, then refused at once, or skipped, counted and listed.

An importer or a check calls `add` for each fault and goes on; `raise_if_refused` at the end of a pass raises one error
that shows all kinds together, so that a user repairs everything in one round. What a format holds by nature (captions
of other splits in Flickr8k) goes through `note`: counted and listed, never refused. So do faults of splits that were
not asked for. Nothing is dropped without either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raycap.errors import DataError
from raycap.whole_file import write_whole

KINDS: dict[str, str] = {
    "image_missing": "a photograph that is named or listed is not there",
    "image_broken": "a file cannot be decoded as a picture (damaged, truncated, empty, or no picture at all)",
    "image_too_large": "the header announces more pixels than data.max_pixels, or a strip (a decompression bomb)",
    "line_malformed": "a line, row or entry does not have the form its file needs",
    "wrong_encoding": "text that is not UTF-8",
    "caption_empty": "a caption without a letter or digit, or without any that the metrics know",
    "caption_without_image": "captions of a picture that is not among the images",
    "image_without_caption": "an image in a captioned data set has no caption and counts as unlabelled",
    "image_not_listed": "a picture that the table of captions does not name, in a layout that needs it to",
    "unknown_file": "a file that is neither a picture that can be read, nor a table, nor captions",
    "image_in_two_splits": "one image in two of train, dev and test",
    "duplicate_id": "the same image or caption id twice",
    "unknown_split": "a split other than train, dev or test",
    "unknown_column": "a column or key of a table of captions that is not read",
    "same_picture": "two image ids hold the same file, byte by byte",
}
SHOWN_PER_KIND = 3


@dataclass(frozen=True)
class Occurrence:
    """One fault: `where` is `file:line` or the image, `count` how many items (captions, say) it stands for."""

    kind: str
    where: str
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class InputReport:
    """Collects faults. `skip` names the kinds that may be left out (`"all"` for every one); others are refused."""

    def __init__(self, skip: Iterable[str] | str = ()) -> None:
        """Raises DataError when `skip` holds an unknown kind."""
        kinds = {skip} if isinstance(skip, str) else set(skip)
        unknown = sorted(kinds - KINDS.keys() - {"all"})
        if unknown:
            remedy = f"known: {', '.join(KINDS)}"
            raise DataError(f"unknown kind {unknown[0]!r}", key="data.skip", value=sorted(kinds), remedy=remedy)
        self.skip: frozenset[str] = frozenset(KINDS) if "all" in kinds else frozenset(kinds)
        self.faults: list[Occurrence] = []
        self.notes: list[Occurrence] = []
        self.written: Path | None = None
        self.when_refused: Callable[[InputReport], None] | None = None
        """Called before the error is raised: what it writes, the message names."""

    def add(self, kind: str, where: str, detail: str, count: int = 1, *, asked: bool = True) -> None:
        """Records a fault; the caller leaves the item out and goes on.

        Args:
            asked: False where it is a fault of a split that was not asked for, which is only noted.
        """
        (self.faults if asked else self.notes).append(Occurrence(_known(kind), where, detail, count))

    def note(self, kind: str, where: str, detail: str, count: int = 1) -> None:
        """Records what this format holds by nature: counted and listed, never refused."""
        self.notes.append(Occurrence(_known(kind), where, detail, count))

    @property
    def refused(self) -> list[Occurrence]:
        """The faults that may not be skipped."""
        return [fault for fault in self.faults if fault.kind not in self.skip]

    @property
    def skipped(self) -> list[Occurrence]:
        """The faults that `skip` allows."""
        return [fault for fault in self.faults if fault.kind in self.skip]

    def count(self, kind: str) -> int:
        """How many items of a kind there are, faults and notes together."""
        return sum(found.count for found in (*self.faults, *self.notes) if found.kind == _known(kind))

    def raise_if_refused(self) -> None:
        """Raises one DataError with every refused kind, its total and first occurrences, if there is any."""
        refused = self.refused
        if not refused:
            return
        if self.when_refused is not None:
            self.when_refused(self)
        parts = []
        for kind, total in _totals(refused).items():
            shown = [str(fault) for fault in refused if fault.kind == kind]
            more = len(shown) - SHOWN_PER_KIND
            shown = shown[:SHOWN_PER_KIND] + ([f"and {more} more"] if more > 0 else [])
            parts.append(f"{total} {kind} [{'; '.join(shown)}]")
        allowed = sorted(self.skip | _totals(refused).keys())
        raise DataError(
            "the input has faults: " + ", ".join(parts),
            key="data.skip",
            value=sorted(self.skip),
            remedy=f"repair the input, or leave these out with data.skip=[{','.join(allowed)}]; they are then listed"
            + (f"; all of them: {self.written}" if self.written else ""),
        )

    def summary(self) -> str:
        """One line: what was skipped and what was only counted."""
        skipped, noted = _totals(self.skipped), _totals(self.notes)
        parts = [f"skipped {total} {kind}" for kind, total in skipped.items()]
        parts += [f"counted {total} {kind}" for kind, total in noted.items()]
        return ", ".join(parts) or "nothing skipped"

    def to_json(self) -> dict[str, Any]:
        """Counts by kind and every single occurrence."""
        return {
            "skipped": {"counts": _totals(self.skipped), "items": [asdict(fault) for fault in self.skipped]},
            "noted": {"counts": _totals(self.notes), "items": [asdict(note) for note in self.notes]},
            "refused": {"counts": _totals(self.refused), "items": [asdict(fault) for fault in self.refused]},
        }

    def write(self, path: Path) -> None:
        """Writes `to_json` to a file, whole or not at all."""
        write_whole(path, json.dumps(self.to_json(), indent=1, ensure_ascii=True) + "\n")
        self.written = path


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of fault; known: {', '.join(KINDS)}")
    return kind


def _totals(found: Iterable[Occurrence]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for occurrence in found:
        totals[occurrence.kind] += occurrence.count
    return dict(totals)
