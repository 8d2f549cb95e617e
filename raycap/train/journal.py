"""Where a loop writes what must survive: its log, its checkpoints, its best captioner.

STAGE/log.jsonl                     one line a step
STAGE/checkpoints/step-000120/      captioner + trainer.pt: everything that a resume needs; sizes.json of all files
STAGE/best/                         captioner alone, at its best on `select`

A captioner that a look finds best becomes `best` with the checkpoint that remembers the look: what a crash between the
two leaves belongs together.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from raycap.errors import CheckpointError, WorkFailed
from raycap.models.checkpoint import (
    WEIGHTS,
    fill_captioner,
    read_about,
    recover_folder,
    replace_folder,
    save_captioner,
    write_folder,
)
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import load_tokenizer
from raycap.train.stopping import stop_asked
from raycap.whole_file import write_whole

TRAINER, SIZES = "trainer.pt", "sizes.json"
NEXT_BEST = ".best.next"
SHOWS_WITHIN_S = 60.0
"""How long a network file system may take to show a folder that another machine wrote."""


class Journal(Protocol):
    """What the loops ask for."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def save(self, step: int, captioner: PrefixCaptioner, state: Mapping[str, Any]) -> None: ...
    def save_best(self, captioner: PrefixCaptioner, about: Mapping[str, Any]) -> None: ...
    def restore(self) -> tuple[Path, dict[str, Any]] | None: ...
    def checkpoint(self, name: str) -> tuple[Path, dict[str, Any]]: ...
    def save_if_asked(self, step: int, save: Callable[[], None]) -> None: ...
    def stop_asked(self) -> str: ...


class FolderJournal:
    """A stage's folder on a file system that the process (and, on a cluster, every node) sees.

    Args:
        folder: of the stage.
        keep: newest checkpoints that are kept.
        watch: called with every record that is logged (progress display).
        about: goes into every captioner that is saved.
        notice: why a checkpoint is wanted before its time, empty when it is not; asked after every step, by all ranks,
            who hear the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        watch: Callable[[Mapping[str, Any]], None] | None = None,
        about: Mapping[str, Any] | None = None,
        notice: Callable[[], str] | None = None,
    ) -> None:
        self._notice = notice or (lambda: "")
        self.folder, self.keep, self.about = folder, keep, dict(about or {})
        self._saved: int | None = None  # the step of the newest checkpoint that this process wrote
        self._watch = watch or (lambda record: None)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found = (self.folder / "checkpoints").glob("step-[0-9]*")
        return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises WorkFailed, OSError: see `save`."""
        with writing(self.folder, "the log"), open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        self._watch(record)

    def save(self, step: int, captioner: PrefixCaptioner, state: Mapping[str, Any]) -> None:
        """A checkpoint; the oldest ones go once it is there. Nothing where this process has saved this step.

        Raises:
            WorkFailed: the disk is full; the checkpoints are those before it.
            OSError: the storage fails otherwise, which may be over the next time.
        """
        if step == self._saved:
            return

        def fill(folder: Path) -> None:
            fill_captioner(folder, captioner, {**self.about, "step": step})
            torch.save({"step": step, **state}, folder / TRAINER)
            (folder / SIZES).write_text(json.dumps(_sizes(folder)))

        checkpoints = self.folder / "checkpoints"
        for left in checkpoints.glob(".step-*.tmp"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        with writing(self.folder, f"the checkpoint of step {step}"):
            write_folder(checkpoints / f"step-{step:06d}", fill)
            self._found_best()
        self._saved = step
        for old in self.checkpoints[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def save_best(self, captioner: PrefixCaptioner, about: Mapping[str, Any]) -> None:
        """The best captioner so far: `best` from the next checkpoint on. Raises WorkFailed, OSError: see `save`."""
        with writing(self.folder, "the best captioner"):
            save_captioner(self.folder / NEXT_BEST, captioner, {**self.about, **about})

    def _found_best(self) -> None:
        if (self.folder / NEXT_BEST).is_dir():
            replace_folder(self.folder / "best", self.folder / NEXT_BEST)

    def save_if_asked(self, step: int, save: Callable[[], None]) -> None:
        """A checkpoint before its time, where the machine is about to go. All ranks ask."""
        if why := self._notice():
            save()
            self._say(f"{why}; checkpoint of step {step} written, training goes on")

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def stop_asked(self) -> str:
        """Why somebody wants the stage to stop; empty when nobody does."""
        return stop_asked(self.folder)

    def restore(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None; log lines after it are cut off.

        A checkpoint that cannot be read is put aside under a name that says so, and the one before it is taken.

        Raises:
            OSError: the storage does not answer. Nothing is wrong with the files: nothing is put aside.
        """
        self._saved = None
        recover_folder(self.folder / "best")
        for old in (self.folder / "checkpoints").glob(".step-*.old"):  # replaced by a process that was killed over it
            recover_folder(old.with_name(old.name[1:].split(".")[0]))
        found, broken = None, []
        for folder in reversed(self.checkpoints):
            try:
                state = _read(folder)
            except Exception as error:  # noqa: BLE001 - whatever a broken file makes torch raise
                _raise_if_storage_fails(error)
                _put_aside(folder)
                broken.append((folder.name, f"{type(error).__name__}: {error}"[:300]))
                continue
            found = folder, state
            break
        step = int(found[1]["step"]) if found else -1
        self._settle_best(step)
        self._cut_log(step)
        for name, why in broken:
            self._tell_of(name, why, f"it goes on from {found[0].name}" if found else "it begins again")
        return found

    def checkpoint(self, name: str) -> tuple[Path, dict[str, Any]]:
        """One that another rank has found, however slow the storage is to show it here.

        Raises:
            OSError: it does not within a minute.
        """
        folder, until = self.folder / "checkpoints" / name, time.monotonic() + SHOWS_WITHIN_S
        while True:
            try:
                return folder, _read(folder)
            except Exception as error:
                if time.monotonic() > until:
                    what = f"the storage does not show this rank the checkpoint {folder}: {error}"
                    raise OSError(errno.ESTALE, what[:400]) from error
                time.sleep(1.0)

    def _settle_best(self, step: int) -> None:
        """The captioner that waits for its checkpoint to be there, which is that of `step` or never will be."""
        waiting = self.folder / NEXT_BEST
        if not waiting.is_dir():
            return
        with suppress(CheckpointError):
            if int(read_about(waiting).get("step", -1)) <= step:
                self._found_best()
                return
        shutil.rmtree(waiting)

    def _tell_of(self, broken: str, why: str, onward: str) -> None:
        self.log({"event": "checkpoint_broken", "folder": broken, "error": why})
        print(f"warning: checkpoint {broken} is broken and put aside ({why}); {onward}", flush=True)

    def _cut_log(self, step: int) -> None:
        file = self.folder / "log.jsonl"
        if not file.exists():
            return
        kept, found = [], file.read_text()
        for line in found.split("\n"):
            try:
                record = json.loads(line)
            except ValueError:  # the line that a crash cut
                continue
            if record.get("step", -1) <= step or "event" in record:
                kept.append(line)
        whole = "".join(line + "\n" for line in kept)
        with writing(self.folder, "the log"):
            if found.startswith(whole):  # in place: a full disk would not take another
                os.truncate(file, len(whole.encode()))
            else:
                write_whole(file, whole)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Inside, a full disk ends the run with the storage's name; what else a storage fails with may be over next time.

    Raises:
        WorkFailed: the disk, or its quota, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise WorkFailed(f"{what} could not be written{_room(folder)}: {error}"[:600], key="storage", value=str(folder),
                         remedy="make room there; the last checkpoint is unharmed, and the same command goes on "
                         "from it") from error  # fmt: skip


def _room(folder: Path) -> str:
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 1e9:.3g} GB are free)"
    return ""


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a checkpoint, by its path inside."""
    return {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}


def _read(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint, all of whose files can be read.

    Raises:
        CheckpointError: a file is not as long as it was written; whatever else a broken file makes its library raise.
    """
    expected = json.loads((folder / SIZES).read_text()) if (folder / SIZES).is_file() else {}
    there = _sizes(folder)
    for name, size in expected.items():
        if there.get(name) != size:
            raise CheckpointError(f"{name} has {there.get(name, 0)} of {size} bytes", key="checkpoint",
                                  value=str(folder))  # fmt: skip
    state: dict[str, Any] = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
    with safe_open(folder / WEIGHTS, framework="pt"):  # checks header against size
        pass
    read_about(folder)
    load_tokenizer(folder)
    return state


def _raise_if_storage_fails(error: Exception) -> None:
    """A network file system that hiccups must not cost a checkpoint; a file that is not there is another matter."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise cause


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f"broken-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    folder.rename(aside)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of a stage's log; a line that is still being written is left out."""
    file = folder / "log.jsonl"
    if not file.exists():
        raise CheckpointError("holds no log", key="stage", value=str(folder))
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
