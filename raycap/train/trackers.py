"""Runs on MLflow and on Weights & Biases.

A stage has one there, by a random id that lies in the stage's folder: a stage that is resumed goes on in it, and one
that is made again, or made in another storage, has its own. What the servers hold to: MLflow takes 1,000 figures a call
and counts one of the same (name, step, time, value) once; W&B drops what lies before the last step, and says of a run
that nobody ends that it crashed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raycap.train.posting import Dated
from raycap.whole_file import write_whole

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""How a stage's process ends; a stopped or failed one may go on."""
ID = "tracked_as"
"""File of the id, in the stage's folder."""
_FIGURES_A_CALL = 1000


def tracked_id(folder: Path) -> str:
    """A stage's id, drawn when it is first asked for."""
    file = folder / ID
    if not file.exists():
        write_whole(file, secrets.token_hex(8))
    return file.read_text()


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a record can be drawn: numbers, but for the step itself."""
    drawn = {key: value for key, value in record.items() if key not in ("step", "total_steps")}
    return {k: float(v) for k, v in drawn.items() if isinstance(v, int | float) and not isinstance(v, bool)}


class MLflowRun:
    """A run in the experiment `raycap` of an MLflow server, found again by its tag `raycap`.

    Args:
        uri: of the server.
        name: that people read.
    """

    _ENDINGS: Mapping[str, str] = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}

    def __init__(self, uri: str, name: str, tracked: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name("raycap")
        place = experiment.experiment_id if experiment else self.client.create_experiment("raycap")
        known = self.client.search_runs([place], f"tags.raycap = '{tracked}'", max_results=1)
        if known:
            self.client.update_run(known[0].info.run_id, status="RUNNING")
        run = known[0] if known else self.client.create_run(place, tags={"raycap": tracked}, run_name=name)
        self.run_id = run.info.run_id

    def send(self, records: Sequence[Dated]) -> None:
        from mlflow.entities import Metric

        figures = [
            Metric(name, value, int(1000 * when), record["step"])
            for when, record in records
            for name, value in numbers_of(record).items()
        ]
        for start in range(0, len(figures), _FIGURES_A_CALL):
            self.client.log_batch(self.run_id, metrics=figures[start : start + _FIGURES_A_CALL])

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status=self._ENDINGS[status])


class WandbRun:
    """A run in a project of Weights & Biases.

    Args:
        name: that people read.
        folder: where W&B's own process keeps what it has not sent yet.
    """

    def __init__(self, project: str, name: str, tracked: str, folder: Path) -> None:
        import wandb

        self.run = wandb.init(project=project, name=name, id=tracked, resume="allow", dir=str(folder))

    def send(self, records: Sequence[Dated]) -> None:
        for _, record in records:
            self.run.log(numbers_of(record), step=record["step"])

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == FINISHED else 1)
