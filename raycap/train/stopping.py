"""Stopping a training loop from outside, with a checkpoint: somebody puts a file into the stage's folder, and the loop
looks for it after every step.

A file reaches a learner on another machine, whoever asks: the job's driver at a signal, a preemption notice, a person
(`touch STORAGE/NAME/scst/stop`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from raycap.errors import Stopped
from raycap.train.group import Group
from raycap.whole_file import write_whole

STOP = "stop"


def ask_to_stop(folder: Path, why: str) -> None:
    """Have the stage in `folder` write a checkpoint after the step it is at, and end."""
    write_whole(folder / STOP, why)


def stop_asked(folder: Path) -> str:
    """Why somebody wants the stage in `folder` to stop; empty when nobody does, or the storage does not say."""
    with suppress(OSError):
        return (folder / STOP).read_text().strip() or "asked to"
    return ""


def forget_stop(folder: Path) -> None:
    """A new start: what was asked of the one before is over."""
    (folder / STOP).unlink(missing_ok=True)


def stop_before_start(folder: Path) -> None:
    """While a stage gets ready: nothing is learned yet that wants a checkpoint.

    Raises:
        Stopped: somebody asked.
    """
    if why := stop_asked(folder):
        raise Stopped(f"stopped before it learned anything: {why}", remedy="the same command goes on from there")


def stop_if_asked(group: Group, why: str, step: int, save: Callable[[], None]) -> None:
    """After a step: whether to go on. All ranks end together.

    Args:
        why: what the journal of rank 0 says, empty to go on; that of other ranks does not count.
        save: writes a checkpoint of this step (rank 0's does).

    Raises:
        Stopped: somebody asked.
    """
    if not group.sum_values([float(bool(why) and group.rank == 0)])[0]:
        return
    save()
    raise Stopped(f"stopped after step {step} with a checkpoint{': ' + why if why else ''}",
                  remedy="the same command goes on from there")  # fmt: skip
