"""Maximum likelihood in one process: it learns, it stops, and a run that was interrupted equals one that was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.errors import WorkFailed
from raycap.models.checkpoint import load_captioner, read_about
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import MLERecipe
from raycap.train import mle
from raycap.train.journal import FolderJournal, Journal, read_log
from raycap.train.labelled import LabelledSet
from raycap.train.mle import Control, train_mle
from raycap.train.validation import Validator, greedy_captions
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture
def train(make_captioner: MakeCaptioner, tiny: TinyData) -> Callable[..., dict[str, Any]]:
    """train(journal, captioner=new, control=None, group=None, **recipe) on the tiny images, 16 of them labelled."""

    def run(journal: Journal, captioner: PrefixCaptioner | None = None, **given: Any) -> dict[str, Any]:
        control, group = given.pop("control", None), given.pop("group", None)
        recipe = {"epochs": 4, "patience": 9, "batch_size": 4, "captions_per_image": 2, "lr": 0.01, "warmup_steps": 3}
        captioner = captioner or make_captioner(tokenizer=tiny.tokenizer, spread=0.02)
        return train_mle(
            captioner, LabelledSet(tiny.train, tiny.tokenizer, 10), tiny.grid,
            Validator(tiny.select, tiny.grid, max_length=10), MLERecipe(**{**recipe, **given}), seed=3,
            journal=journal, control=control, group=group,
        )  # fmt: skip

    return run


Train = Callable[..., dict[str, Any]]


def test_it_learns_to_name_what_it_has_not_seen(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, tiny: TinyData
) -> None:
    captioner = make_captioner(tokenizer=tiny.tokenizer, spread=0.02)
    done = train(FolderJournal(tmp_path), captioner, epochs=40, patience=40, ema=0.8)
    records = [record for record in read_log(tmp_path) if "select_cider" in record]
    assert records[0]["select_cider"] < 0.5 < 1.5 < done["best_cider"]
    assert records[-1]["train_loss"] < 0.35 * records[0]["train_loss"]
    assert min(record["select_xe_loss"] for record in records) < 0.6 * records[0]["select_xe_loss"]
    best = load_captioner(tmp_path / "best")
    said = greedy_captions(best, tiny.grid, list(tiny.select), max_length=10)
    named = [any(text.split()[1] in caption or text.split()[-1] in caption for text in tiny.select[image_id])
             for image_id, caption in said.items()]  # fmt: skip
    assert sum(named) >= 7
    assert read_about(tmp_path / "best")["step"] == done["best_step"]
    assert done["best_cider"] == max(record["select_cider"] for record in records)
    assert Validator(tiny.select, tiny.grid, max_length=10).cider(best) == done["best_cider"]


@pytest.mark.parametrize("at", [3, 4, 11])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_by_bit(
    train: Train, tmp_path: Path, interrupted: Any, assert_same_run: Any, at: int
) -> None:
    """Dropout on, averaged weights, cut before the first checkpoint, at an epoch's end and in its middle."""
    options: dict[str, Any] = {"epochs": 4, "ema": 0.9}
    whole = train(FolderJournal(tmp_path / "whole"), **options)
    interrupted(lambda journal: train(journal, **options), tmp_path / "cut", at=at)
    logged = [record["step"] for record in read_log(tmp_path / "cut") if "step" in record]
    assert max(logged, default=0) == at - 1
    again = train(FolderJournal(tmp_path / "cut"), **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert whole["steps"] == 16


def test_a_step_does_not_depend_on_how_it_is_cut(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, tiny: TinyData
) -> None:
    """One image's captions at a time, two images', the whole batch."""
    after = []
    for rows in (1, 5, 10**6):
        captioner = make_captioner(tokenizer=tiny.tokenizer, spread=0.02, lm_config=PLAIN)
        train(FolderJournal(tmp_path / str(rows)), captioner, epochs=1, micro_batch=rows)
        after.append(torch.cat([p.detach().reshape(-1) for p in captioner.parameters()]))
    losses = [read_log(tmp_path / str(rows))[-1]["train_loss"] for rows in (1, 5, 10**6)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    for other in after[1:]:
        torch.testing.assert_close(other, after[0], rtol=0, atol=2e-4)


def test_the_comparison_of_runs_can_fail(train: Train, tmp_path: Path, assert_same_run: Any) -> None:
    train(FolderJournal(tmp_path / "one"), epochs=1)
    train(FolderJournal(tmp_path / "two"), epochs=1, lr=0.0100001)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_finished_run_is_not_gone_on_with(train: Train, tmp_path: Path) -> None:
    first = train(FolderJournal(tmp_path), epochs=2)
    lines = (tmp_path / "log.jsonl").read_text()
    again = train(FolderJournal(tmp_path), epochs=2)
    assert (again["steps"], again["best_cider"]) == (first["steps"], first["best_cider"])
    assert (tmp_path / "log.jsonl").read_text() == lines


def test_it_stops_when_select_no_longer_improves_and_stays_stopped(train: Train, tmp_path: Path) -> None:
    """A learning rate of almost nothing: no epoch is better than the first."""
    done = train(FolderJournal(tmp_path), epochs=20, patience=3, lr=1e-9)
    assert done["steps"] == 4 * (1 + 3)
    assert done["best_step"] == 4
    records = read_log(tmp_path)
    assert [record.get("best") for record in records if "best" in record] == [True, False, False, False]
    assert train(FolderJournal(tmp_path), epochs=20, patience=3, lr=1e-9)["steps"] == 16


def test_an_epoch_of_few_images_goes_through_them_several_times(train: Train, tmp_path: Path) -> None:
    """Four steps go once through the images; six and more must be eight: whole passes."""
    train(FolderJournal(tmp_path), epochs=2, epoch_steps=6)
    looks = [record for record in read_log(tmp_path) if "select_cider" in record]
    assert [(record["step"], record["epoch"]) for record in looks] == [(8, 2), (16, 4)]


def test_every_step_is_logged_and_every_epoch_looked_at(train: Train, tmp_path: Path) -> None:
    train(FolderJournal(tmp_path), epochs=3)
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert {record["total_steps"] for record in records} == {12}
    looks = [record for record in records if "select_cider" in record]
    assert [(record["step"], record["epoch"]) for record in looks] == [(4, 1), (8, 2), (12, 3)]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    # warm-up over 3 of 12 steps, then a cosine to 5%: the rate of the eighth step (number 7) is 4/9 of the way down
    assert looks[-1]["lr"] < looks[1]["lr"] < looks[0]["lr"] <= 0.01


def test_the_control_keeps_its_start_and_goes_on_whatever_select_says(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, tiny: TinyData
) -> None:
    start = make_captioner(tokenizer=tiny.tokenizer)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    cider = Validator(tiny.select, tiny.grid, max_length=10).cider(start)
    done = train(FolderJournal(tmp_path), start, control=Control(steps=6), lr=1e-9, patience=1)
    assert done["steps"] == 6
    assert (done["best_step"], done["best_cider"]) == (0, cider)
    kept = load_captioner(tmp_path / "best").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())


def test_the_control_may_be_measured_in_seconds(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is the training's own: here one second a look at the clock, one look a step."""
    monkeypatch.setattr(mle, "time", Clock())
    control = Control(steps=3, seconds=24.0, record=tmp_path / "control.json")
    done = train(FolderJournal(tmp_path / "run"), control=control)
    assert 16 <= done["steps"] <= 24, "the planned steps do not end it, the seconds do"
    assert json.loads((tmp_path / "control.json").read_text()) == {"steps": done["steps"]}
    rates = [record["lr"] for record in read_log(tmp_path / "run") if "lr" in record]
    assert rates[-1] == pytest.approx(0.01 * 0.05, rel=0.3), "the cosine arrives with the last step"


@pytest.mark.parametrize("at", [2, 9])
def test_a_control_that_was_interrupted_goes_on_for_the_steps_that_were_recorded(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Any, at: int
) -> None:
    """Before the record is made (nothing holds yet) and after it, on a machine that has become ten times slower."""
    clock = Clock()
    monkeypatch.setattr(mle, "time", clock)
    options: dict[str, Any] = {"control": Control(steps=3, seconds=24.0, record=tmp_path / "control.json")}
    interrupted(lambda journal: train(journal, **options), tmp_path / "run", at=at)
    recorded = (tmp_path / "control.json").exists()
    assert recorded == (at == 9)
    clock.tick = 10.0
    done = train(FolderJournal(tmp_path / "run"), **options)
    steps = json.loads((tmp_path / "control.json").read_text())["steps"]
    assert done["steps"] == steps
    assert (steps > 10) == recorded, "a slow machine does fewer steps in the seconds, unless their number is known"


def test_a_record_of_an_older_raycap_is_a_guess(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote down what it planned, with the seconds, before it had measured anything."""
    monkeypatch.setattr(mle, "time", Clock())
    record = tmp_path / "control.json"
    record.write_text('{"steps": 3, "seconds": 24.0}')
    done = train(FolderJournal(tmp_path / "run"), control=Control(steps=3, seconds=24.0, record=record))
    assert done["steps"] > 10
    assert json.loads(record.read_text()) == {"steps": done["steps"]}


@pytest.mark.parametrize(("seen_by", "steps"), [(0, 5), (1, 0)])
def test_ranks_go_by_the_record_that_the_first_one_sees(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any, seen_by: int, steps: int
) -> None:
    """A slow storage shows it to one of them; seconds that are over end the run where rank 0 has no number."""
    (tmp_path / f"control-{seen_by}.json").write_text('{"steps": 5}')

    def learn(group: Any) -> int:
        control = Control(steps=3, seconds=1e-9, record=tmp_path / f"control-{group.rank}.json")
        journal = (Nowhere if group.rank else FolderJournal)(tmp_path / f"rank-{group.rank}")
        captioner = make_captioner(tokenizer=tiny.tokenizer, lm_config=PLAIN)
        return int(train(journal, captioner, control=control, group=group)["steps"])

    assert on_ranks(2, learn) == [steps, steps]


def test_a_run_whose_gradient_is_not_finite_ends_and_keeps_what_it_had(train: Train, tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"not finite.*lower mle\.lr"):
        train(FolderJournal(tmp_path), lr=1e30, warmup_steps=0)
    looks = [record["select_xe_loss"] for record in read_log(tmp_path) if "select_xe_loss" in record]
    assert all(math.isfinite(value) for value in looks)


class Clock:
    """Time that passes with every look at it."""

    now, tick = 0.0, 1.0

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


class Nowhere(FolderJournal):
    """The journal of a rank above 0."""

    def log(self, record: Any) -> None: ...
    def save(self, step: int, captioner: PrefixCaptioner, state: Any) -> None: ...
    def save_best(self, captioner: PrefixCaptioner, about: Any) -> None: ...


def gradients(captioner: PrefixCaptioner) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_a_step_and_learn_what_one_learns(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, tiny: TinyData, on_ranks: Any, ranks: int
) -> None:
    """One step on all 16 images (5 + 5 + 6 of three ranks), dropout off: loss and gradient agree."""

    options = {"epochs": 1, "batch_size": 16, "grad_clip": 1e9, "warmup_steps": 0}
    alone, *together = (make_captioner(tokenizer=tiny.tokenizer, lm_config=PLAIN) for _ in range(1 + ranks))
    train(FolderJournal(tmp_path / "alone"), alone, **options)

    def learn(group: Any) -> None:
        journal = (Nowhere if group.rank else FolderJournal)(tmp_path / f"rank-{group.rank}")
        train(journal, together[group.rank], group=group, **options)

    on_ranks(ranks, learn)
    expected = gradients(alone)
    for captioner in together:
        for name, value in gradients(captioner).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=name)
        for name, value in captioner.state_dict().items():
            assert torch.equal(value, together[0].state_dict()[name]), f"the ranks' {name} drifted apart"
    one, several = (read_log(tmp_path / name)[-1]["train_loss"] for name in ("alone", "rank-0"))
    assert several == pytest.approx(one, abs=1e-5)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-2
