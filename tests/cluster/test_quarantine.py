"""An image that rollout workers die of: set aside, named, counted, and remembered by log, checkpoint and result."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from raycap.cluster import training_stages
from raycap.cluster.rollout_worker import RolloutActor, RolloutWorker
from raycap.cluster.run import run_recipe
from raycap.cluster.training_stages import scst_schedule
from raycap.errors import WorkFailed
from raycap.train.journal import TRAINER, FolderJournal, read_log
from raycap.types import Generation, Lease

pytestmark = pytest.mark.ray


class Dying(RolloutWorker):
    """Dies of the second lease of step 1."""

    def generate(self, lease: Lease) -> Generation:
        if (lease.step, lease.number) == (1, 1):
            os._exit(1)
        return super().generate(lease)


class Doomed(RolloutWorker):
    """Dies of every lease."""

    def generate(self, lease: Lease) -> Generation:
        os._exit(1)


class PoisonedActor(RolloutActor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.worker.__class__ = Dying


class DoomedActor(RolloutActor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.worker.__class__ = Doomed


class StillbornActor(RolloutActor):
    """Dies before it asks for a lease."""

    def run(self, exchange: Any) -> dict[str, Any]:
        os._exit(1)


def test_it_is_left_out_and_everybody_remembers(
    ray_session: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_stages, "RolloutActor", PoisonedActor)
    run = tiny_run("poison", scst={"steps": 3, "select_every": 3}, cluster={"quarantine_after": 2})
    run_recipe(run.recipe)
    images = list(scst_schedule(run, 0).leases(1)[1].image_ids)
    folder = run.path("scst", 0)
    logged = {r["step"]: r.get("set_aside") for r in read_log(folder) if "pg_loss" in r}
    assert logged == {1: None, 2: images, 3: None}
    expected = [{"step": 2, "images": images}]
    state = torch.load(FolderJournal(folder).checkpoints[-1] / TRAINER, weights_only=True)
    assert state["looks"]["set_aside"] == expected
    finished = json.loads((folder / "finished.json").read_text())
    assert finished["set_aside"] == expected
    assert len(finished["workers_lost"]) == 2


def test_workers_that_die_of_everything_end_the_run(
    ray_session: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lease after the other is set aside, until nothing of the step is left."""
    monkeypatch.setattr(training_stages, "RolloutActor", DoomedActor)
    run = tiny_run("doomed", cluster={"rollout_workers": 1, "quarantine_after": 1})
    with pytest.raises(WorkFailed, match=r"step = 0: every lease of it was set aside"):
        run_recipe(run.recipe)


def test_workers_that_die_of_nothing_end_the_run(
    ray_session: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_stages, "RolloutActor", StillbornActor)
    run = tiny_run("stillborn", cluster={"rollout_workers": 1})
    with pytest.raises(WorkFailed, match=r"rollout_workers = 1: rollout workers died 5 times with nothing delivered"):
        run_recipe(run.recipe)
