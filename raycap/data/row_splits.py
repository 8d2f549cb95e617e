"""The split of each image of a table of captions: what its rows say, else its hash; and whose a faulty row is.

A table holds all splits, and only some are asked for. What is wrong with the others' rows is noted and refuses nothing,
so the rows are gone through twice: first for their splits, then for their faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raycap.data.images import is_picture_name
from raycap.data.input_report import InputReport
from raycap.data.schema import SPLITS
from raycap.data.split_lists import HELD_OUT_FIRST, Listed, one_split


class RowSplits:
    """The splits of a table's images.

    Args:
        rows: (image, split) of each row that can be read; "" where it gives none.
        splits: those that are asked for; None: all.
        by_hash: the split of an image whose rows give none.
    """

    def __init__(self, rows: Iterable[tuple[str, str]], splits: set[str] | None, by_hash: Callable[[str], str]) -> None:
        self._splits, self._by_hash = splits, by_hash
        self._said: dict[str, str] = {}
        self._named: set[str] = set()
        self._first: dict[str, Listed] = {}
        for image, split in rows:
            self._named.add(image)
            if split in SPLITS:
                self._said[image] = min(split, self._said.get(image, split), key=HELD_OUT_FIRST.index)

    def of(self, image: str) -> str:
        """The split of an image; the most held-out one where its rows give several."""
        return self._said.get(image) or self._by_hash(image)

    def asked(self, image: str) -> bool:
        """Whether the image is in a split that is asked for."""
        return self._splits is None or self.of(image) in self._splits

    def is_asked(self, split: str) -> bool:
        """Whether a split is asked for; one that is not given, or unknown, may be."""
        return self._splits is None or split not in SPLITS or split in self._splits

    def damaged_is_asked(self, image: str | None) -> bool:
        """Whether a damaged row of the image is of an asked split; so it counts where that cannot be told.

        The row's own split cannot be read: where rows give splits, only another one of the same image tells.
        """
        if self._splits is None or not image:
            return True
        if image in self._said or (not self._said and (image in self._named or is_picture_name(image))):
            return self.asked(image)
        return True

    def check(self, image: str, split: str, where: str, report: InputReport) -> bool:
        """Reports what is wrong with the split that a row gives: unknown_split (False), image_in_two_splits."""
        if not split:
            return True
        if split not in SPLITS:
            whose = image not in self._said or self.asked(image)
            report.add("unknown_split", where, f"{split!r} is not one of {', '.join(SPLITS)}", asked=whose)
            return False
        first = self._first.setdefault(image, Listed(split, where))
        if first.split != split:
            self._first[image] = one_split(image, first, Listed(split, where), report, self._splits)
        return True
