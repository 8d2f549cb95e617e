"""The contract of lag 0: the Ray run is bit-equal to the one-process loop, for any number of workers, killed or not."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.cluster import precision
from raycap.cluster.run import run_recipe
from raycap.cluster.stages import Run
from raycap.cluster.training_stages import mle_stage, reward_context, scst_schedule
from raycap.data.features import FeatureStore
from raycap.errors import Stopped
from raycap.models.checkpoint import load_captioner
from raycap.models.weights import snapshot
from raycap.rewards.contract import build_component
from raycap.train.journal import FolderJournal, read_log
from raycap.train.labelled import LabelledSet
from raycap.train.scst import train_scst
from raycap.train.stopping import ask_to_stop
from raycap.train.validation import Validator
from raycap.types import WeightsId
from tests.processes import processes

pytestmark = pytest.mark.ray


def one_process(run: Run, folder: Path, learner: str = "float32", rollout: str = "float32") -> Path:
    """The reference: `raycap.train.scst` on the same run, in these types; the folder that it wrote."""
    recipe = run.recipe
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    spec = reward_context(run, folder)
    features = FeatureStore.open(run.path("features", 0) / "captioner")
    components = {name: build_component(name, spec.open(), r.options, r.source) for name, r in recipe.rewards.items()}
    captioner = load_captioner(run.path("mle", 0) / "best")
    captions = {i: run.dataset.references(i) for i in run.labelled_ids(run.dataset)}
    train_scst(
        captioner,
        scst_schedule(run, 0),
        features,
        components,
        {name: r.weight for name, r in recipe.rewards.items()},
        Validator(run.select_references(run.dataset), features, max_length=recipe.captioner.max_length),
        recipe.scst,
        recipe.cluster,
        max_length=recipe.captioner.max_length,
        seed=0,
        journal=FolderJournal(folder),
        precision=getattr(torch, learner),
        rollout_precision=getattr(torch, rollout),
        labelled=LabelledSet(captions, captioner.tokenizer, recipe.captioner.max_length),
    )
    return folder


def parameters(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Parameters of the newest checkpoint, which must be that of `step`."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{step:06d}"
    return load_captioner(newest).state_dict()


def records(folder: Path) -> list[dict[str, Any]]:
    """What was logged of the updates."""
    return [record for record in read_log(folder) if "pg_loss" in record]


def rewards(folder: Path) -> list[dict[str, Any]]:
    kept = (
        "step",
        "pg_loss",
        "grad_norm",
        "length",
        "select_cider",
        "rollouts",
    )  # the last: captions and rewards, each
    return [{k: v for k, v in record.items() if k in kept or k.startswith("reward/")} for record in records(folder)]


def assert_equal(ours: Path, reference: Path, step: int = 5) -> None:
    a, b = parameters(ours, step), parameters(reference, step)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []
    assert rewards(ours) == rewards(reference)


def run_until_killed(run: Any) -> None:
    """Up to the learner's death after step 3 of 15."""
    folder = run.path("scst", 0)
    killer = threading.Thread(target=_kill_learner_after_checkpoint, args=(folder,), daemon=True)
    killer.start()
    with pytest.raises(Exception, match="learner failed"):
        run_recipe(run.recipe)
    killer.join(timeout=5)
    steps = [record["step"] for record in read_log(folder) if "step" in record]
    assert 3 <= max(steps) < 15


def assert_resumed(run: Any, reference: Path) -> None:
    folder = run.path("scst", 0)
    assert_equal(folder, reference, 15)
    assert int((folder / "incarnation").read_text()) == 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_equals_the_one_process_loop(ray_session: Any, tiny_run: Any, tmp_path: Path, workers: int) -> None:
    run = tiny_run("ray", cluster={"rollout_workers": workers})
    expected = one_process(run, tmp_path / "reference")
    run_recipe(run.recipe)
    assert_equal(run.path("scst", 0), expected)
    assert len(rewards(expected)) == 5
    before = load_captioner(run.path("mle", 0) / "best").state_dict()
    after = parameters(expected, 5)
    assert any(not torch.equal(before[name], after[name]) for name in before)  # it did learn something


def test_every_part_of_the_objective_is_equal_too(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    objective = {"objective": "ppo", "ppo_epochs": 2, "minibatches": 2, "kl_weight": 0.1, "entropy_weight": 0.01,
                 "mle_weight": 0.5, "mle_batch_size": 4, "steps": 3}  # fmt: skip
    run = tiny_run("objective", scst=objective, cluster={"rollout_workers": 2})
    expected = one_process(run, tmp_path / "reference")
    run_recipe(run.recipe)
    assert_equal(run.path("scst", 0), expected, 3)
    for figure in ("kl", "entropy", "mle_loss", "clipped"):
        ours, theirs = ([record[figure] for record in records(folder)] for folder in (run.path("scst", 0), expected))
        assert ours == theirs


def test_killed_after_step_3_and_resumed_is_the_same(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    """More steps than elsewhere: on a busy machine the learner would be over them before it is killed."""
    run = tiny_run("killed", cluster={"rollout_workers": 2, "max_failures": 0}, scst={"steps": 15})
    expected = one_process(run, tmp_path / "reference")
    run_until_killed(run)
    run_recipe(run.recipe)
    assert_resumed(run, expected)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The type that a measurement finds faster, by role: what a test puts in."""
    found: dict[str, str] = {}
    monkeypatch.setattr(precision, "find_precision", lambda run, role, **_: {"dtype": found[role]})
    return found


def test_what_began_in_bfloat16_goes_on_in_it(
    ray_session: Any, tiny_run: Any, tmp_path: Path, faster: dict[str, str]
) -> None:
    """Killed, and resumed where a measurement would choose float32: equal to the loop that never was in it."""
    faster |= {"learner": "bfloat16", "rollout": "bfloat16"}
    cluster = {"precision": "bfloat16", "rollout_workers": 2, "max_failures": 0}
    run = tiny_run("bfloat16", cluster=cluster, scst={"steps": 15})
    expected = one_process(run, tmp_path / "reference", **faster)
    run_until_killed(run)
    faster |= dict.fromkeys(faster, "float32")
    run_recipe(run.recipe)
    assert_resumed(run, expected)


def test_recomputing_changes_nothing_and_each_role_has_its_type(
    ray_session: Any, tiny_run: Any, tmp_path: Path, faster: dict[str, str]
) -> None:
    """The reference keeps its activations."""
    faster |= {"learner": "float32", "rollout": "bfloat16"}
    run = tiny_run("recompute", cluster={"precision": "bfloat16", "learner_recompute": True})
    expected = one_process(run, tmp_path / "reference", **faster)
    run_recipe(run.recipe)
    assert_equal(run.path("scst", 0), expected)
    assert max(record["ratio_max_error"] for record in records(expected)) > 1e-4, "rollouts are rounder than scores"


def test_adapters_learn_on_ray_as_in_one_process_and_go_on_after_a_kill(
    ray_session: Any, tiny_run: Any, tmp_path: Path, pretrained_lm: Path
) -> None:
    """A pretrained LM with adapters: workers have it from its folder, and are sent adapters and mapping alone."""
    captioner = {"lm": str(pretrained_lm), "lm_tuning": "lora", "lora": {"rank": 2}}
    cluster = {"rollout_workers": 2, "max_failures": 0}
    run = tiny_run("lora", captioner=captioner, cluster=cluster, scst={"steps": 15})
    expected = one_process(run, tmp_path / "reference")
    run_until_killed(run)
    run_recipe(run.recipe)
    assert_resumed(run, expected)
    before, after = load_captioner(run.path("mle", 0) / "best"), parameters(expected, 15)
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert changed == {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    assert any("lora_B" in name for name in changed)
    assert {r["published_bytes"] for r in records(run.path("scst", 0))} == {snapshot(before, WeightsId(0, 0)).nbytes}
    weights = run.path("scst", 0) / "best" / "model.safetensors"
    assert weights.stat().st_size < sum(4 * p.numel() for p in before.lm.parameters()) / 2


def test_a_gpu_shared_by_turns_changes_nothing(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    """Killed and resumed; the reference shares nothing. What moves is the optimizer, the averages, the KL's policy."""
    scst = {"steps": 15, "ema": 0.5, "kl_weight": 0.1}
    cluster = {"rollout_workers": 1, "max_failures": 0}
    expected = one_process(tiny_run("apart", cluster=cluster, scst=scst), tmp_path / "reference")
    run = tiny_run("turns", cluster={**cluster, "collocated": True}, scst=scst)
    run_until_killed(run)
    run_recipe(run.recipe)
    assert_resumed(run, expected)


def test_a_lost_rollout_worker_changes_nothing(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    run = tiny_run("lost", cluster={"rollout_workers": 2})
    expected = one_process(run, tmp_path / "reference")
    killer = threading.Thread(target=_kill_a_rollout_worker, daemon=True)
    killer.start()
    run_recipe(run.recipe)
    killer.join(timeout=5)
    finished = json.loads((run.path("scst", 0) / "finished.json").read_text())
    assert len(finished["workers_lost"]) >= 1
    assert_equal(run.path("scst", 0), expected)


def test_two_ranks_learn_what_one_learns(ray_session: Any, tiny_run: Any, tmp_path: Path) -> None:
    """The loss is normalised over all ranks: the same captions at first, parameters that agree to rounding."""
    run = tiny_run("ranks", cluster={"rollout_workers": 2, "learner_workers": 2}, scst={"steps": 3, "select_every": 3})
    expected = one_process(run, tmp_path / "reference")
    run_recipe(run.recipe)
    assert_learned_alike(run, expected)


def test_two_ranks_that_share_the_captioner_learn_what_one_learns(
    ray_session: Any, tiny_run: Any, tmp_path: Path
) -> None:
    """MLE and SCST on shards; what workers generate with, what is looked at and what is saved is whole."""
    cluster = {"rollout_workers": 2, "learner_workers": 2, "learner_sharding": "fsdp"}
    mle = {"epochs": 1, "batch_size": 5, "micro_batch": 5, "ema": 0.9}
    run = tiny_run("sharded", cluster=cluster, mle=mle,
                   scst={"steps": 3, "select_every": 3, "kl_weight": 0.05, "ema": 0.9})  # fmt: skip
    learned = mle_stage(run, 0)
    looks = [record["select_cider"] for record in read_log(run.path("mle", 0)) if "select_cider" in record]
    assert looks == [learned["best_cider"]]
    expected = one_process(run, tmp_path / "reference")
    run_recipe(run.recipe)
    assert_learned_alike(run, expected)
    assert all(record["ratio_max_error"] < 1e-4 for record in records(run.path("scst", 0))), "stale weights"
    best = [load_captioner(folder / "best").state_dict() for folder in (run.path("scst", 0), expected)]
    assert best[0].keys() == best[1].keys()


@pytest.mark.slow
def test_what_was_stopped_on_shards_goes_on_on_one_rank(ray_session: Any, tiny_run: Any) -> None:
    scst = {"steps": 12, "select_every": 12, "ema": 0.9}
    cluster = {"rollout_workers": 2, "learner_workers": 2, "learner_sharding": "fsdp"}
    run = tiny_run("stopped", cluster=cluster, scst=scst)
    folder = run.path("scst", 0)
    stopper = threading.Thread(target=_stop_after_a_step, args=(folder,), daemon=True)
    stopper.start()
    with pytest.raises(Stopped, match="stopped after step"):
        run_recipe(run.recipe)
    stopper.join(timeout=5)
    last = max(record["step"] for record in read_log(folder))
    assert 1 <= last < 12
    before = parameters(folder, last)
    alone = run.recipe.cluster.model_copy(update={"learner_workers": 1, "learner_sharding": "none"})
    run_recipe(run.recipe.model_copy(update={"cluster": alone}))
    assert [record["step"] for record in records(folder)] == list(range(1, 13))
    after = parameters(folder, 12)
    assert after.keys() == before.keys()
    assert records(folder)[last]["ratio_max_error"] < 1e-4, "workers had the weights of the checkpoint"


def assert_learned_alike(run: Run, expected: Path) -> None:
    """Three steps."""
    ours, reference = records(run.path("scst", 0)), records(expected)
    assert [r["step"] for r in ours] == [1, 2, 3]
    for name in ("reward/cider/sampled", "reward/cider/greedy", "length"):
        assert ours[0][name] == pytest.approx(reference[0][name], rel=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(reference[0]["grad_norm"], rel=1e-4)
    a, b = parameters(run.path("scst", 0), 3), parameters(expected, 3)
    # Adam turns the rounding of a gradient near 0 into a step of up to lr: 1e-3 here
    assert all(float((a[name] - b[name]).abs().max()) < 3e-3 for name in a)
    assert sum(float((a[name] - b[name]).abs().sum()) for name in a) / sum(a[name].numel() for name in a) < 1e-5


def test_one_step_off_goes_to_the_end(ray_session: Any, tiny_run: Any) -> None:
    """max_policy_lag=1: from the second step on, captions come from the version before."""
    run = tiny_run("lag", cluster={"rollout_workers": 2}, scst={"max_policy_lag": 1})
    run_recipe(run.recipe)
    found = records(run.path("scst", 0))
    assert [r["step"] for r in found] == [1, 2, 3, 4, 5]
    assert found[0]["policy_lag"] == 0
    assert all(0 <= r["policy_lag"] <= 1 for r in found)
    assert any(r["policy_lag"] > 0 for r in found)
    assert all(r["ess"] <= 1 + 1e-6 for r in found)
    health = {"seconds/wait", "seconds/learn", "seconds/publish", "seconds/weights", "seconds/generate"}
    health |= {"seconds/reward", "idle/learner", "idle/actors", "queue/pending", "queue/leased", "queue/ready"}
    for record in found:
        assert health <= record.keys()
        assert 0 <= record["idle/learner"] <= 1
        assert 0 <= record["idle/actors"] <= 1
        assert record["seconds/generate"] > 0


def _kill_learner_after_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "checkpoints" / "step-000003").exists():
            for pid in processes("ray::RayTrainWorker"):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.002)


def _stop_after_a_step(folder: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (folder / "log.jsonl").exists() and any(record.get("step") for record in read_log(folder)):
            ask_to_stop(folder, "for this test")
            return
        time.sleep(0.01)


def _kill_a_rollout_worker() -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        pids = processes("ray::RolloutActor.run")
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            return
        time.sleep(0.05)
