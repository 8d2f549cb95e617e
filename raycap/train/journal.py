"""Where a loop writes what must survive: its log, its checkpoints, its best captioner.

STAGE/log.jsonl                     one line a step
STAGE/checkpoints/step-000120/      captioner + trainer.pt: everything that a resume needs; sizes.json of all files
STAGE/best/                         captioner alone, at its best on `select`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from raycap.errors import CheckpointError, WorkFailed
from raycap.models.checkpoint import WEIGHTS, fill_captioner, read_about, recover_folder, save_captioner, write_folder
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import load_tokenizer
from raycap.train.stopping import stop_asked
from raycap.whole_file import write_whole

TRAINER, SIZES = "trainer.pt", "sizes.json"


class Journal(Protocol):
    """What the loops ask for."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def save(self, step: int, captioner: PrefixCaptioner, state: Mapping[str, Any]) -> None: ...
    def save_best(self, captioner: PrefixCaptioner, about: Mapping[str, Any]) -> None: ...
    def restore(self) -> tuple[Path, dict[str, Any]] | None: ...
    def stop_asked(self) -> str: ...


class FolderJournal:
    """A stage's folder on a file system that the process (and, on a cluster, every node) sees.

    Args:
        folder: of the stage.
        keep: newest checkpoints that are kept.
        watch: called with every record that is logged (progress display).
        about: goes into every captioner that is saved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        watch: Callable[[Mapping[str, Any]], None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.keep, self.about = folder, keep, dict(about or {})
        self._watch = watch or (lambda record: None)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found = (self.folder / "checkpoints").glob("step-[0-9]*")
        return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises WorkFailed: see `save`."""
        with self._writing("the log"), open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        self._watch(record)

    def save(self, step: int, captioner: PrefixCaptioner, state: Mapping[str, Any]) -> None:
        """A checkpoint; the oldest ones go once it is there.

        Raises:
            WorkFailed: the storage does not take it, as a full disk does not; the checkpoints are those before it.
        """

        def fill(folder: Path) -> None:
            fill_captioner(folder, captioner, {**self.about, "step": step})
            torch.save({"step": step, **state}, folder / TRAINER)
            (folder / SIZES).write_text(json.dumps(_sizes(folder)))

        checkpoints = self.folder / "checkpoints"
        for left in checkpoints.glob(".step-*.tmp"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        with self._writing(f"the checkpoint of step {step}"):
            write_folder(checkpoints / f"step-{step:06d}", fill)
        for old in self.checkpoints[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def save_best(self, captioner: PrefixCaptioner, about: Mapping[str, Any]) -> None:
        """Raises WorkFailed: see `save`."""
        with self._writing("the best captioner"):
            save_captioner(self.folder / "best", captioner, {**self.about, **about})

    def stop_asked(self) -> str:
        """Why somebody wants the stage to stop; empty when nobody does."""
        return stop_asked(self.folder)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Inside, what fails to be written ends the run with the storage's name."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and _TORCH_WRITES not in str(error):
                raise
            raise WorkFailed(f"{what} could not be written{_room(self.folder)}: {type(error).__name__}: {error}"[:600],
                             key="storage", value=str(self.folder),
                             remedy="make room there; the last checkpoint is unharmed, and the same command goes on "
                             "from it") from error  # fmt: skip

    def restore(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None; log lines after it are cut off.

        A checkpoint that cannot be read is put aside under a name that says so, and the one before it is taken.
        """
        recover_folder(self.folder / "best")
        found, broken = None, []
        for folder in reversed(self.checkpoints):
            try:
                state = _read(folder)
            except Exception as error:  # noqa: BLE001 - whatever a broken file makes torch raise
                _raise_if_storage_fails(error, folder)
                _put_aside(folder)
                broken.append((folder.name, f"{type(error).__name__}: {error}"[:300]))
                continue
            found = folder, state
            break
        self._cut_log(int(found[1]["step"]) if found else -1)
        for name, why in broken:
            self._tell_of(name, why, f"it goes on from {found[0].name}" if found else "it begins again")
        return found

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
        with self._writing("the log"):
            if found.startswith(whole):  # in place: a full disk would not take another
                os.truncate(file, len(whole.encode()))
            else:
                write_whole(file, whole)


_TORCH_WRITES = "inline_container.cc"
"""What torch says when a file cannot be written to its end: where in its own code that was."""


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


def _raise_if_storage_fails(error: Exception, folder: Path) -> None:
    """A network file system that hiccups must not cost a checkpoint: nothing is wrong with the file.

    Raises:
        CheckpointError: the storage did not answer; a file that is not there is another matter.
    """
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise CheckpointError(f"the storage does not answer: {cause}", key="checkpoint", value=str(folder),
                                  remedy="run the same command again") from error  # fmt: skip


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f"broken-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    with suppress(FileNotFoundError):  # another rank was quicker
        folder.rename(aside)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of a stage's log; a line that is still being written is left out."""
    file = folder / "log.jsonl"
    if not file.exists():
        raise CheckpointError("holds no log", key="stage", value=str(folder))
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
