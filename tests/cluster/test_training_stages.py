"""What `cluster` says of precision and recomputing reaches the loops, here in this process instead of Ray's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.cluster import learner_loop, precision, training_stages
from raycap.cluster.stages import Run
from raycap.cluster.training_stages import mle_stage
from raycap.models.recompute import recompute_blocks
from raycap.train.group import Alone
from raycap.train.journal import FolderJournal
from tests.train.conftest import BreakingJournal, Interrupted

SHORT = {"epochs": 2, "batch_size": 8, "micro_batch": 10}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_stages, "run_train_job", lambda loop, config, cluster, folder: loop(config))
    monkeypatch.setattr(training_stages, "training_group", lambda *_: Alone())


def trained(run: Run) -> dict[str, torch.Tensor]:
    """Parameters of the newest checkpoint."""
    newest = FolderJournal(run.path("mle", 0)).checkpoints[-1]
    return training_stages.load_captioner(newest).state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks of an LM were made to recompute, by captioner."""
    found: list[int] = []
    for module in (training_stages, learner_loop):
        monkeypatch.setattr(module, "recompute_blocks", lambda made: found.append(recompute_blocks(made)))
    return found


@pytest.mark.usefixtures("in_this_process")
def test_mle_that_recomputes_learns_the_same(tiny_run: Any, blocks: list[int]) -> None:
    """With dropout: the second computation draws what the first one drew."""
    runs = [tiny_run(f"again-{again}", mle=SHORT, cluster={"learner_recompute": again}) for again in (False, True)]
    for run in runs:
        mle_stage(run, 0)
    assert blocks == [2], "of the second run's LM"
    assert same(*map(trained, runs))


def test_the_learner_of_scst_recomputes_in_its_type(tiny_run: Any, blocks: list[int]) -> None:
    """That it changes no number is for tests/cluster/test_equality.py."""
    run = tiny_run("scst", cluster={"learner_recompute": True})
    folders = {"start": run.path("mle", 0) / "best", "features": run.path("features", 0) / "captioner"}
    config = {"recipe": run.recipe, "seed": 0, "device": "cpu", "precision": "bfloat16", **folders}
    learner, _ = learner_loop._set_up(config, Alone())
    assert blocks == [2]
    assert learner.descent.precision == torch.bfloat16


@pytest.mark.usefixtures("in_this_process")
def test_mle_that_began_in_bfloat16_goes_on_in_it(tiny_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second epoch, and resumed on a machine where bfloat16 would not be chosen."""

    def begin(name: str, faster: str) -> Run:
        monkeypatch.setattr(precision, "find_precision", lambda *_, **__: {"dtype": faster})
        run: Run = tiny_run(name, mle=SHORT, cluster={"precision": "bfloat16"})
        return run

    exact, whole = begin("exact", "float32"), begin("whole", "bfloat16")
    mle_stage(whole, 0)
    monkeypatch.setattr(precision, "find_precision", lambda *_, **__: {"dtype": "float32"})
    mle_stage(exact, 0)
    assert not same(trained(exact), trained(whole))

    cut = begin("cut", "bfloat16")

    def breaking(folder: str, group: Any, *, keep: int, about: Any, **_: Any) -> FolderJournal:
        return BreakingJournal(Path(folder), breaks_at=4, keep=keep, about=about)

    with monkeypatch.context() as patched:
        patched.setattr(training_stages, "rank_journal", breaking)
        with pytest.raises(Interrupted):
            mle_stage(cut, 0)
    monkeypatch.setattr(precision, "find_precision", lambda *_, **__: {"dtype": "float32"})
    mle_stage(cut, 0)
    assert same(trained(cut), trained(whole))
