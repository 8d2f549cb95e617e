"""Reward components and learners with planted faults, for tests: a module that every process of the test's Ray can
import."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raycap.cluster.reward_pool import RewardWorker
from raycap.errors import RecipeError
from raycap.train.stopping import ask_to_stop
from raycap.types import CaptionBatch


class Faulty:
    """Its captions' lengths, but for the caption at `place`, where `fault` happens.

    Args:
        marker: a file that the fault leaves behind; where it lies, nothing happens any more.
    """

    def __init__(self, context: Any, *, fault: str, place: int = 1, marker: str = "") -> None:
        self.fault, self.place, self.marker = fault, place, marker

    def score(self, batch: CaptionBatch) -> Sequence[float | None]:
        values: list[float | None] = [float(len(caption)) for caption in batch.captions]
        if self.marker and Path(self.marker).exists():
            return values
        if self.marker:
            Path(self.marker).touch()
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "die":
            os._exit(1)
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


class Unhurried:
    """Captions' lengths; a batch takes so many seconds until a file is there, and no time afterwards."""

    def __init__(self, context: Any, *, until: str, nap_s: float = 0.1) -> None:
        self.until, self.nap_s = Path(until), nap_s

    def score(self, batch: CaptionBatch) -> Sequence[float | None]:
        if not self.until.exists():
            time.sleep(self.nap_s)
        return [float(len(caption)) for caption in batch.captions]


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


class Late:
    """Cannot be built the first `times`, because of what may pass.

    Args:
        folder: gets a file for each time.
        fault: "storage" or "memory".
        threads: a file that gets the number of torch threads that it scores with.
    """

    signature = "late"

    def __init__(self, context: Any, *, folder: str, times: int, fault: str = "storage", threads: str = "") -> None:
        self.threads, before = threads, len(list(Path(folder).iterdir()))
        if before < times:
            (Path(folder) / str(before)).touch()
            raise MemoryError if fault == "memory" else OSError(errno.ESTALE, "Stale file handle")

    def score(self, batch: CaptionBatch) -> Sequence[float]:
        import torch

        if self.threads:
            Path(self.threads).write_text(str(torch.get_num_threads()))
        return [1.0] * len(batch)


class NumberedWorker(RewardWorker):
    """A reward actor that tells the number of its process."""

    def number(self) -> int:
        return os.getpid()


class SlowToStart(NumberedWorker):
    """One that takes longer to start again than a batch's calls are made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        time.sleep(2.0)
        super().__init__(*args, **options)


def with_a_fault(loop: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """A learner's loop with a fault of `config["fault"]`: its kind, the step whose update meets it, and the rank."""
    from raycap.train.learner import Learner

    kind, step, rank = config["fault"]
    whole = Learner.update

    def update(self: Learner, rollouts: Any) -> dict[str, Any]:
        if self.step == step and self.group.rank == rank:
            _meet(kind, Path(config["folder"]))
        return whole(self, rollouts)

    Learner.update = update
    try:
        return loop(config)
    finally:
        Learner.update = whole


def _meet(kind: str, folder: Path) -> None:
    if kind == "ours":
        raise RecipeError("planted", key="scst.lr", value=1.0)
    if kind == "a bug":
        raise ValueError("planted")
    if kind == "a connection":
        raise ConnectionResetError("planted")
    if kind == "a stop":
        ask_to_stop(folder, "planted")
    if kind == "a full disk":
        from raycap.train import journal

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        journal.fill_captioner = full
