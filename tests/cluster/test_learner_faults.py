"""What goes wrong in the learner: what ends the run at once, what is tried again, what a resumed run makes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster import training_stages
from raycap.cluster.retrying import TRACEBACK
from raycap.cluster.run import run_recipe
from raycap.errors import RecipeError, Stopped, WorkFailed
from raycap.train.journal import TRAINER, FolderJournal, read_log
from raycap.train.stopping import ask_to_stop
from tests.chaos.monkey import logged

from .faulty import with_a_fault
from .test_equality import assert_equal, one_process

pytestmark = pytest.mark.ray
Plant = Callable[..., None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """plant(kind, step, rank=0): in the runs that follow; plant("") in none."""
    run_train_job = training_stages.run_train_job

    def plant(kind: str, step: int = 0, rank: int = 0) -> None:
        def run(loop: Any, config: dict[str, Any], cluster: Any, folder: Path) -> dict[str, Any]:
            return run_train_job(partial(with_a_fault, loop), {**config, "fault": (kind, step, rank)}, cluster, folder)

        monkeypatch.setattr(training_stages, "run_train_job", run if kind else run_train_job)

    return plant


def starts(run: Any) -> int:
    """How often the learner was started."""
    return int((run.path("scst", 0) / "incarnation").read_text()) + 1


def steps(run: Any) -> list[int]:
    return [record["step"] for record in read_log(run.path("scst", 0)) if "step" in record]


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1), (2, 0)])
def test_what_no_retry_mends_ends_the_run_at_once(
    ray_session: Any, tiny_run: Any, plant: Plant, ranks: int, rank: int
) -> None:
    """Also where one rank meets it and the other waits for that one in a collective."""
    plant("ours", 2, rank)
    run = tiny_run("ours", cluster={"learner_workers": ranks, "max_failures": 3})
    with pytest.raises(RecipeError, match=r"scst\.lr = 1\.0: planted"):
        run_recipe(run.recipe)
    assert starts(run) == 1
    assert steps(run) == [0, 1, 2]


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_a_bug_is_as_deterministic(ray_session: Any, tiny_run: Any, plant: Plant, ranks: int, rank: int) -> None:
    plant("a bug", 2, rank)
    run = tiny_run("bug", cluster={"learner_workers": ranks, "max_failures": 3})
    with pytest.raises(WorkFailed, match=r"the learner failed: ValueError: planted .*it would fail again"):
        run_recipe(run.recipe)
    assert starts(run) == 1
    assert "in _meet" in (run.path("scst", 0) / TRACEBACK).read_text()


def test_what_comes_from_outside_is_tried_again_as_often_as_the_recipe_says(
    ray_session: Any, tiny_run: Any, plant: Plant
) -> None:
    plant("a connection", 2)
    run = tiny_run("outside", cluster={"max_failures": 1})
    told = (
        r"cluster\.max_failures = 1: the learner failed after 1 restarts.* rank 0: ConnectionResetError: planted \(run"
    )
    with pytest.raises(WorkFailed, match=told):
        run_recipe(run.recipe)
    assert starts(run) == 2


def test_a_full_disk_at_a_checkpoint(ray_session: Any, tiny_run: Any, plant: Plant, tmp_path: Path) -> None:
    run = tiny_run("full", cluster={"max_failures": 3}, scst={"steps": 9})
    expected = one_process(run, tmp_path / "reference")
    plant("a full disk", 5)
    with pytest.raises(WorkFailed, match=r"could not be written .*No space left on device.*make room there") as failed:
        run_recipe(run.recipe)
    folder = run.path("scst", 0)
    assert (failed.value.key, failed.value.value, failed.value.exit_code) == ("storage", str(folder), 1)
    assert starts(run) == 1
    assert [checkpoint.name for checkpoint in FolderJournal(folder).checkpoints] == ["step-000003"]
    plant("")
    run_recipe(run.recipe)
    assert_equal(folder, expected, 9)


def test_a_checkpoint_that_was_cut_short(ray_session: Any, tiny_run: Any, plant: Plant, tmp_path: Path) -> None:
    run = tiny_run("cut", scst={"steps": 9})
    expected = one_process(run, tmp_path / "reference")
    plant("a stop", 6)
    with pytest.raises(Stopped, match="stopped after step 7 with a checkpoint: planted"):
        run_recipe(run.recipe)
    plant("")
    folder = run.path("scst", 0)
    newest = FolderJournal(folder).checkpoints[-1] / TRAINER
    assert newest.parent.name == "step-000007"
    newest.write_bytes(newest.read_bytes()[:-100])
    run_recipe(run.recipe)
    assert_equal(folder, expected, 9)
    (broken,) = (record for record in read_log(folder) if record.get("event") == "checkpoint_broken")
    assert broken["folder"] == "step-000007"
    assert f"{TRAINER} has" in broken["error"]
    assert (folder / "checkpoints" / "broken-step-000007").is_dir()
    assert json.loads((folder / "finished.json").read_text())["set_aside"] == []


def test_a_stop_is_heard_while_the_first_step_is_waited_for(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    """What was seen before that step is in the checkpoint, and is not looked at again."""
    hangs = {"source": "tests.cluster.faulty:Faulty", "options": {"fault": "hang", "marker": str(tmp_path / "hangs")}}
    run = tiny_run("waits", rewards={"cider": {}, "mine": {**hangs, "weight": 0.1}})
    folder = run.path("scst", 0)

    def stop() -> None:
        while not (tmp_path / "hangs").exists() or logged(folder) < 0:
            time.sleep(0.1)
        ask_to_stop(folder, "planted")

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match="stopped after step 0 with a checkpoint: planted"):
        run_recipe(run.recipe)
    run_recipe(run.recipe)
    assert_equal(folder, one_process(run, tmp_path / "reference"))
    assert steps(run) == [0, 1, 2, 3, 4, 5]


def test_a_stall_says_who_waits_for_whom(ray_session: Any, tiny_run: Any) -> None:
    hangs = {"source": "tests.cluster.faulty:Faulty", "options": {"fault": "hang"}}
    run = tiny_run("stall", rewards={"cider": {}, "mine": hangs}, cluster={"stall_timeout_s": 4, "rollout_workers": 2})
    said = r"cluster\.stall_timeout_s = 4\.0: step 0 got no further for so long: .*rollout-\d, which holds lease 0/\d "
    with pytest.raises(WorkFailed, match=said + r"since \d+ s ago, waits for rewards: (cider, )?mine \(for \d+ s\)"):
        run_recipe(run.recipe)
    assert steps(run) == [0]


def test_a_reward_that_hangs_ends_the_run(ray_session: Any, tiny_run: Any) -> None:
    hangs = {"source": "tests.cluster.faulty:Faulty", "options": {"fault": "hang"}}
    run = tiny_run("hang", rewards={"cider": {}, "mine": hangs}, cluster={"reward_timeout_s": 1})
    with pytest.raises(WorkFailed, match=r"rewards\.mine: took longer than 1 s for a batch that begins with"):
        run_recipe(run.recipe)
