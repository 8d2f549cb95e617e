"""Where else a stage's log goes: TensorBoard, MLflow, Weights & Biases. The log itself is a file, `log.jsonl`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raycap.errors import RecipeError
from raycap.recipe import LoggingRecipe
from raycap.train.posting import Posted, Server
from raycap.train.trackers import MLflowRun, WandbRun, numbers_of, tracked_id


def _nothing(status: str) -> None:
    """There is nothing to close."""


@dataclass(frozen=True)
class Sink:
    """One of the places.

    Attributes:
        name, remedy: for people: where the log goes, and what to do when it does not.
        log: a record; may raise.
        close: the stage's process ends, "finished", "stopped" or "failed"; may raise.
    """

    name: str
    remedy: str
    log: Callable[[Mapping[str, Any]], None]
    close: Callable[[str], None] = _nothing


def _warn(name: str, remedy: str, error: Exception) -> None:
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    print(f"warning: the log does not go to {name} ({what}); {remedy}. Training goes on, log.jsonl has all of it, and "
          "it is tried again", flush=True)  # fmt: skip


class Sinks:
    """Every record of a step to every sink. One that fails is spoken of once, and tried again with later records: a
    server that is away ends no training.

    Args:
        retry_s: after a failure.
    """

    def __init__(self, sinks: Sequence[Sink], *, retry_s: float = 60.0) -> None:
        self.sinks, self.retry_s = list(sinks), retry_s
        self._failed: dict[str, float] = {}  # by name, when it last did (seconds, monotonic)

    def __call__(self, record: Mapping[str, Any]) -> None:
        if "step" not in record:
            return
        for sink in self.sinks:
            if time.monotonic() - self._failed.get(sink.name, -float("inf")) < self.retry_s:
                continue
            try:
                sink.log(record)
            except Exception as error:  # noqa: BLE001 - whatever its library raises
                self._fail(sink, error)

    def close(self, status: str) -> None:
        """The stage's process ends: "finished", "stopped" or "failed"."""
        for sink in self.sinks:
            try:
                sink.close(status)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(sink, error)

    def _fail(self, sink: Sink, error: Exception) -> None:
        if sink.name not in self._failed:
            _warn(sink.name, sink.remedy, error)
        self._failed[sink.name] = time.monotonic()


def sinks_of(recipe: LoggingRecipe, folder: Path, run: str) -> list[Sink]:
    """Of a stage that writes into `folder`, begun anew or resumed.

    Args:
        run: its name for people, such as "flickr8k/seed-0/scst".

    Raises:
        RecipeError: a library that is asked for is not installed.
    """
    made: list[Sink] = []
    if recipe.tensorboard:
        board = TensorBoard(folder / "tensorboard")
        made.append(Sink("TensorBoard", f"look at {board.folder}", board.log, board.close))
    if uri := recipe.mlflow:
        _check_installed("mlflow", uri)
        tracked = tracked_id(folder)
        made.append(_posted("MLflow", "logging.mlflow", uri, lambda: MLflowRun(uri, run, tracked)))
    if project := recipe.wandb:
        _check_installed("wandb", project)
        tracked = tracked_id(folder)
        made.append(_posted("Weights & Biases", "logging.wandb", project,
                            lambda: WandbRun(project, run, tracked, folder)))  # fmt: skip
    return made


def _posted(name: str, key: str, value: str, connect: Callable[[], Server]) -> Sink:
    remedy = f"look whether {key} = {value!r} can be reached from the learner's node, with its credentials there"
    posted = Posted(connect, partial(_warn, name, remedy))
    return Sink(name, remedy, posted.log, posted.close)


def _check_installed(package: str, value: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise RecipeError(f"the package {package} is not installed", key=f"logging.{package}", value=value,
                          remedy=f"pip install {package}, on every node that learns") from error  # fmt: skip


class TensorBoard:
    """Event files in a folder, one a start.

    Written here and not by its SummaryWriter, which does so in another process and loses the end of the log with a
    killed one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None  # with the first record: the file's name holds the time

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises OSError."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers_of(record).items()]
        try:
            if self._writer is None:
                self._writer = self._open()
                # What an interrupted start wrote beyond its last checkpoint is cut off there.
                self._write(record["step"], session_log=SessionLog(status=SessionLog.START))
            self._write(record["step"], summary=Summary(value=values))
            self._writer.flush()
        except Exception:
            self._writer = None  # nobody reads on behind half an event: what comes next goes into another file
            raise

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(self.folder / "events"))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
