"""Where else a stage's log goes: TensorBoard, MLflow, Weights & Biases. The log itself is a file, `log.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raycap.errors import RecipeError
from raycap.recipe import LoggingRecipe

Sink = Callable[[Mapping[str, Any]], None]


def sinks_of(recipe: LoggingRecipe, folder: Path, run: str) -> list[Sink]:
    """Of a stage that writes into `folder`, begun anew or resumed.

    Args:
        run: its name among others, such as "flickr8k/scst".

    Raises:
        RecipeError: a library that is asked for is not installed.
    """
    made: list[Sink] = []
    if recipe.tensorboard:
        made.append(_tensorboard(folder / "tensorboard"))
    if recipe.mlflow:
        made.append(_mlflow(recipe.mlflow, run))
    if recipe.wandb:
        made.append(_wandb(recipe.wandb, run, folder))
    return made


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a record can be drawn: numbers, but for the step itself."""
    drawn = {key: value for key, value in record.items() if key not in ("step", "total_steps")}
    return {k: float(v) for k, v in drawn.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def all_of(sinks: Sequence[Sink]) -> Sink:
    """Every record to every sink. One that fails is spoken of and left: a server that is away ends no training."""
    working = list(sinks)

    def watch(record: Mapping[str, Any]) -> None:
        for sink in tuple(working):
            try:
                sink(record)
            except Exception as error:  # noqa: BLE001 - whatever its library raises
                working.remove(sink)
                print(f"warning: the log goes there no longer ({type(error).__name__}: {str(error)[:200]})", flush=True)

    return watch


def _tensorboard(folder: Path) -> Sink:
    # not its SummaryWriter, which writes in another process and loses the end of the log with a killed one
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import Summary

    opened: list[Any] = []  # with the first record: the file's name holds the time, and a resume makes another

    def log(record: Mapping[str, Any]) -> None:
        if "step" not in record:
            return
        now, step = time.time(), record["step"]
        if not opened:
            folder.mkdir(parents=True, exist_ok=True)
            opened.append(EventsWriter(str(folder / "events")))
            # What an interrupted start wrote beyond its last checkpoint is cut off there.
            opened[0].write_event(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers_of(record).items()]
        opened[0].write_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
        opened[0].flush()

    return log


def _mlflow(uri: str, run: str) -> Sink:
    try:
        import mlflow
    except ImportError as error:
        raise _missing("mlflow", uri) from error
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("raycap")
    known = mlflow.search_runs(filter_string=f"tags.raycap = '{run}'", output_format="list")
    begun = mlflow.start_run(run_id=known[0].info.run_id if known else None, run_name=run, tags={"raycap": run})
    client = mlflow.MlflowClient()

    def log(record: Mapping[str, Any]) -> None:
        if "step" in record:
            for name, value in numbers_of(record).items():
                client.log_metric(begun.info.run_id, name, value, step=record["step"])

    return log


def _wandb(project: str, run: str, folder: Path) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", project) from error
    begun = wandb.init(project=project, name=run, id=run.replace("/", "-"), resume="allow", dir=str(folder))

    def log(record: Mapping[str, Any]) -> None:
        if "step" in record:
            begun.log(numbers_of(record), step=record["step"])

    return log


def _missing(name: str, value: str) -> RecipeError:
    return RecipeError(f"the package {name} is not installed", key=f"logging.{name}", value=value,
                       remedy=f"pip install {name}, on every node that learns")  # fmt: skip
