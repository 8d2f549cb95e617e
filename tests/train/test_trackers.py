"""What MLflow and W&B are asked, by stand-ins for their packages."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycap.recipe import LoggingRecipe
from raycap.train.sinks import Sinks, sinks_of
from raycap.train.trackers import MLflowRun, WandbRun, numbers_of, tracked_id


def test_numbers_are_what_can_be_drawn() -> None:
    record = {"step": 3, "total_steps": 9, "pg_loss": 0.5, "best": True, "rollouts": "ab12", "queue/ready": 2}
    assert numbers_of(record) == {"pg_loss": 0.5, "queue/ready": 2.0}


class MLflowServer:
    """Experiments and runs, and every call that was made."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def client(self, tracking_uri: str) -> Any:
        assert tracking_uri == "http://server"
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        tag = filter_string.removeprefix("tags.raycap = '").removesuffix("'")
        found = [run for run, about in self.runs.items() if about["tags"] == {"raycap": tag}]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found][:max_results]

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        run = f"r{len(self.runs)}"
        self.runs[run] = {"tags": tags, "name": run_name, "status": "RUNNING", "figures": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.calls.append(("log_batch", len(metrics)))
        self.runs[run_id]["figures"] |= {(m.key, m.step): (m.value, m.timestamp) for m in metrics}

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MLflowServer:
    server = MLflowServer()
    package: Any = types.ModuleType("mlflow")
    package.MlflowClient = server.client
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(
        key=key, value=value, timestamp=timestamp, step=step
    )
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server


def test_mlflow_gets_many_steps_in_one_call(mlflow: MLflowServer) -> None:
    run = MLflowRun("http://server", "flickr8k/seed-0/scst", "a1")
    run.send([(10.5, {"step": 1, "pg_loss": 0.5, "best": True}), (11.0, {"step": 2, "pg_loss": 0.25, "ess": 1.0})])
    assert mlflow.calls == [("log_batch", 3)]
    figures = {("pg_loss", 1): (0.5, 10500), ("pg_loss", 2): (0.25, 11000), ("ess", 2): (1.0, 11000)}
    assert mlflow.runs["r0"]["figures"] == figures
    run.send([(12.0, {f"f{n}": 1.0 for n in range(600)} | {"step": step}) for step in (3, 4, 5)])
    assert mlflow.calls[1:] == [("log_batch", 1000), ("log_batch", 800)]


@pytest.mark.parametrize(("status", "theirs"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_run_on_mlflow_ends_as_the_stage_does_and_goes_on_with_it(
    mlflow: MLflowServer, status: str, theirs: str
) -> None:
    MLflowRun("http://server", "flickr8k/seed-0/scst", "a1").close(status)
    assert mlflow.runs["r0"]["status"] == theirs
    MLflowRun("http://server", "flickr8k/seed-0/scst", "a1").send([(1.0, {"step": 9, "pg_loss": 1.0})])
    assert list(mlflow.runs) == ["r0"]
    assert mlflow.runs["r0"]["status"] == "RUNNING"
    MLflowRun("http://server", "flickr8k/seed-0/scst", "b2")
    assert [run["name"] for run in mlflow.runs.values()] == ["flickr8k/seed-0/scst"] * 2


class Wandb:
    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []

    def init(self, **options: Any) -> Wandb:
        self.begun.append(options)
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    service = Wandb()
    package: Any = types.ModuleType("wandb")
    package.init = service.init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return service


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("stopped", 1), ("failed", 1)])
def test_a_run_on_wandb_is_ended(wandb: Wandb, tmp_path: Path, status: str, code: int) -> None:
    run = WandbRun("captions", "flickr8k/seed-0/scst", "a1", tmp_path)
    run.send([(1.0, {"step": 1, "pg_loss": 0.5}), (2.0, {"step": 2, "pg_loss": 0.25})])
    run.close(status)
    begun = {"project": "captions", "name": "flickr8k/seed-0/scst", "id": "a1", "resume": "allow", "dir": str(tmp_path)}
    assert wandb.begun == [begun]
    assert wandb.logged == [(1, {"pg_loss": 0.5}), (2, {"pg_loss": 0.25})]
    assert wandb.ended == [code]


def test_a_stage_keeps_its_id_and_another_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = tracked_id(tmp_path / "one")
    assert tracked_id(tmp_path / "one") == one != tracked_id(tmp_path / "other")
    assert one.isalnum()


def test_both_follow_a_stage_from_its_start_through_a_resume(
    mlflow: MLflowServer, wandb: Wandb, tmp_path: Path
) -> None:
    recipe = LoggingRecipe(tensorboard=False, mlflow="http://server", wandb="captions")
    for start in (1, 3):
        sinks = Sinks(sinks_of(recipe, tmp_path, "flickr8k/seed-0/scst"))
        for step in (start, start + 1):
            sinks({"step": step, "pg_loss": float(step)})
        sinks({"event": "checkpoint_broken"})
        sinks.close("stopped" if start == 1 else "finished")
    assert [run["status"] for run in mlflow.runs.values()] == ["FINISHED"]
    assert sorted(mlflow.runs["r0"]["figures"]) == [("pg_loss", step) for step in (1, 2, 3, 4)]
    assert [step for step, _ in wandb.logged] == [1, 2, 3, 4]
    assert len({begun["id"] for begun in wandb.begun}) == 1
    assert wandb.ended == [1, 0]
