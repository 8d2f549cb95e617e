"""Each role computes in the type that is faster where it runs, and goes on in it whatever is asked for later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.cluster import precision
from raycap.cluster.precision import find_precision, stage_precision
from raycap.cluster.run import STAGES
from raycap.cluster.stages import Run

from .conftest import recipe_of

HALF = {"precision": "bfloat16"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(CPUs, GPUs, device, threads) of each measurement, as if on a cluster with a GPU, where bfloat16 wins on it."""
    found: list[tuple[Any, ...]] = []
    threads: list[int] = []

    def here(function: Callable[..., Any], *, num_cpus: float, num_gpus: float) -> Callable[..., Any]:
        def run(device: str, wanted: int) -> Any:
            answer = function(device, wanted)
            found.append((num_cpus, num_gpus, device, threads[-1]))
            return answer

        return run

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8, "GPU": 1.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 1.0}}])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(precision, "on", lambda device: device)
    monkeypatch.setattr(precision, "task", here)
    monkeypatch.setattr(precision, "gather", dict)
    faster = {"cuda": "bfloat16", "cpu": "float32"}
    monkeypatch.setattr(precision, "measure_precision", lambda device: {"dtype": faster[device]})
    return found


def run_of(storage: Path, **cluster: Any) -> Run:
    run = Run(recipe_of(storage, ["mle", "scst"], cluster=cluster), STAGES)
    for stage in ("mle", "scst"):
        run.path(stage, 0).mkdir(parents=True, exist_ok=True)
    return run


def test_each_role_is_measured_where_it_runs(tmp_path: Path, measured: list[tuple[Any, ...]]) -> None:
    """A learner on the CPU must not take over the type of rollouts on the GPU: there it is hundreds of times slower."""
    cluster = {**HALF, "learner_cpus": 3, "learner_threads": 3, "learner_gpus": 0}
    run = run_of(tmp_path, **cluster, rollout_cpus=0.5, rollout_threads=2, rollout_gpus=0.5)
    assert stage_precision(run, "scst", 0) == {"learner": "float32", "rollout": "bfloat16"}
    assert measured == [(3, 0, "cpu", 3), (0.5, 0.5, "cuda", 2)]
    recorded = json.loads((run.path("scst", 0) / "precision.json").read_text())
    assert recorded == {"learner": {"dtype": "float32"}, "rollout": {"dtype": "bfloat16"}}
    assert stage_precision(run, "mle", 0) == {"learner": "float32"}
    assert measured[2:] == [(3, 0, "cpu", 3)]


def test_what_is_recorded_holds(
    tmp_path: Path, measured: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of an older raycap, which recorded one type for all roles, and only where bfloat16 was asked for."""
    run = run_of(tmp_path)
    (run.path("scst", 0) / "precision.json").write_text('{"dtype": "bfloat16"}')
    assert stage_precision(run, "scst", 0) == {"learner": "bfloat16", "rollout": "bfloat16"}
    assert "precision = float32, but the learner computes in bfloat16" in capsys.readouterr().out
    assert stage_precision(run, "mle", 0) == {"learner": "float32"}, "what nobody asked for"
    asked = run_of(tmp_path, **HALF)
    assert stage_precision(asked, "mle", 0) == {"learner": "float32"}, "a stage that began in float32 goes on in it"
    assert "precision = bfloat16, but the learner computes in float32" in capsys.readouterr().out
    assert measured == []


@pytest.mark.ray
def test_a_role_is_measured_in_a_process_of_its_own(ray_session: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = find_precision(run_of(tmp_path, **HALF, rollout_threads=threads + 1), "rollout", alone=False)
    assert found["dtype"] in ("float32", "bfloat16")
    assert found["float32_gflops"] > 0.1
    assert torch.get_num_threads() == threads
