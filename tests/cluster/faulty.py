"""Reward components with planted faults, for tests: a module that every process of the test's Ray can import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from raycap.cluster.reward_pool import RewardWorker
from raycap.errors import RecipeError
from raycap.types import CaptionBatch


class Faulty:
    """Its captions' lengths, but for the caption at `place`, where `fault` happens."""

    def __init__(self, context: Any, *, fault: str, place: int = 1) -> None:
        self.fault, self.place = fault, place

    def score(self, batch: CaptionBatch) -> Sequence[float | None]:
        values: list[float | None] = [float(len(caption)) for caption in batch.captions]
        if self.fault == "exception":
            raise ValueError("planted")
        if self.fault == "exit":
            raise SystemExit(3)
        if self.fault == "short":
            return values[:-1]
        if self.fault == "long":
            return [*values, 0.0]
        values[self.place] = {"nan": float("nan"), "infinity": float("inf"), "none": None}.get(self.fault, 0.0)
        return values


class Picky:
    """Says before it is built which options it takes, as anybody's class may."""

    def __init__(self, context: Any, *, size: int = 1) -> None:
        self.check_options(size=size)

    @staticmethod
    def check_options(*, size: int = 1) -> None:
        if size < 1:
            raise ValueError("size must be 1 or more")


class Refuses:
    """Refuses its options when it is built, which nothing could know before."""

    def __init__(self, context: Any) -> None:
        raise RecipeError("planted", key="rewards.mine.options", value={})


class NumberedWorker(RewardWorker):
    """A reward actor that tells the number of its process."""

    def number(self) -> int:
        return os.getpid()
