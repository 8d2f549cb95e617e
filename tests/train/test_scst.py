"""Self-critical training in one process: rewards rise, an interrupted run equals a whole one, collapse stops it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycap.decoding.sample import generate
from raycap.errors import Collapsed, RewardError, Stopped
from raycap.models.checkpoint import load_captioner, read_about
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import WordTokenizer
from raycap.recipe import ClusterRecipe, RewardRecipe, SCSTRecipe
from raycap.rewards.mix import Mix
from raycap.train import learner
from raycap.train.journal import FolderJournal, Journal, read_log
from raycap.train.prompts import PromptSchedule
from raycap.train.scst import far_below_greedy, generate_lease, train_scst
from raycap.train.turns import Turns
from raycap.train.validation import Validator
from raycap.types import CaptionBatch, Lease, Prompt
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]
WORDS = ("one", "two", "three", "four", "five")
WORTH = (1.0, 0.6, 0.3, 0.0, 0.0)


class Bandit:
    """The first word's worth: on one side of the picture "one" is best, on the other "three"; "two" is a lure."""

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [self.worth(*pair) for pair in zip(batch.image_ids, batch.captions, strict=True)]

    def worth(self, image_id: str, caption: str) -> float:
        side = int(image_id[-3:]) // 12
        return WORTH[(WORDS.index(caption.split()[0]) + 3 * side) % 5] if caption else 0.0


class Scripted:
    """Looks at `select` as they were written down."""

    def __init__(self, *looks: float) -> None:
        self.looks: Iterator[float] = iter(looks)

    def figures(self, captioner: PrefixCaptioner) -> dict[str, float]:
        return {"select_cider": next(self.looks)}


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(make_captioner: MakeCaptioner, tiny: TinyData, one_thread: ClusterRecipe) -> Train:
    """train(journal, captioner=new, component=Bandit(), looks=None, max_length=6, seed=0, reward={}, precision={},
    cluster={}, **recipe)."""

    def run(
        journal: Journal, captioner: PrefixCaptioner | None = None, component: Any = None, looks: Any = None,
        max_length: int = 6, seed: int = 0, reward: Any = None, precision: Any = None,
        cluster: Any = None, **given: Any,
    ) -> dict[str, Any]:  # fmt: skip
        values = {"steps": 6, "batch_size": 6, "lease_size": 4, "num_samples": 3, "lr": 1e-3, "select_every": 2}
        recipe = SCSTRecipe(**{**values, "collapse_share": 0, **given})
        captioner = captioner or make_captioner(tokenizer=WordTokenizer(WORDS), seed=seed)
        schedule = PromptSchedule(
            list(tiny.captions), batch_size=recipe.batch_size, lease_size=recipe.lease_size, seed=seed
        )
        validator: Any = looks or Validator(dict.fromkeys(tiny.select, ("one two", "three")), tiny.grid, max_length=6)
        mix = Mix({"bandit": RewardRecipe(**(reward or {}))}, recipe.steps)
        where = one_thread.model_copy(update=cluster or {})
        return train_scst(
            captioner, schedule, tiny.grid, {"bandit": component or Bandit()}, mix, validator, recipe, where,
            max_length=max_length, seed=seed, journal=journal, **(precision or {}),
        )  # fmt: skip

    return run


def steps(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(folder) if "pg_loss" in record]


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_near_the_known_optimum(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, baseline: str, seed: int
) -> None:
    """A policy that starts nearly uniform, at a mean worth of 0.3; the best it could have is 1."""
    start = make_captioner(tokenizer=WordTokenizer(WORDS), spread=0.05, seed=seed, lm_config={"n_layer": 1})
    train(
        FolderJournal(tmp_path), start, looks=Scripted(0.5, 0.9), max_length=2, seed=seed, steps=110, batch_size=12,
        lease_size=12, num_samples=8, lr=5e-3, baseline=baseline, select_every=110,
    )  # fmt: skip
    rewards = [record["reward/bandit/sampled"] for record in steps(tmp_path)]
    assert np.mean(rewards[:5]) < 0.4
    assert np.mean(rewards[-10:]) > 0.95
    assert steps(tmp_path)[-1]["reward/bandit/greedy"] > 0.95


def test_a_reward_turned_round_is_unlearned(train: Train, tmp_path: Path, make_captioner: MakeCaptioner) -> None:
    """The direction is the reward's: with its sign changed the same loop makes it fall."""

    class Turned(Bandit):
        def worth(self, image_id: str, caption: str) -> float:
            return -super().worth(image_id, caption)

    start = make_captioner(tokenizer=WordTokenizer(WORDS), spread=0.05, lm_config={"n_layer": 1})
    train(
        FolderJournal(tmp_path), start, component=Turned(), looks=Scripted(0.5, 0.9), max_length=2, steps=40,
        batch_size=12, lease_size=12, num_samples=8, lr=5e-3, baseline="leave_one_out", select_every=40,
    )  # fmt: skip
    rewards = [-record["reward/bandit/sampled"] for record in steps(tmp_path)]
    assert np.mean(rewards[-5:]) < 0.5 * np.mean(rewards[:5])


class StoppingJournal(FolderJournal):
    """Somebody asks for a stop after a step."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.step = step

    def stop_asked(self) -> str:
        return "planted" if read_log(self.folder)[-1]["step"] >= self.step else ""


def test_a_run_that_is_stopped_between_two_looks_equals_one_that_is_not(
    train: Train, tmp_path: Path, assert_same_run: Any
) -> None:
    """With a checkpoint where no look was: what the watch has summed up since the last one goes on, too."""
    options: dict[str, Any] = {"select_every": 3, "watch_looks": 1, "ema": 0.9, "baseline": "leave_one_out"}
    train(FolderJournal(tmp_path / "whole"), **options)
    with pytest.raises(Stopped, match="stopped after step 2 with a checkpoint"):
        train(StoppingJournal(tmp_path / "stopped", 2), **options)
    train(FolderJournal(tmp_path / "stopped"), **options)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_stop_that_comes_with_the_last_step_stops_nothing(train: Train, tmp_path: Path) -> None:
    assert train(StoppingJournal(tmp_path, 6))["steps"] == 6


@pytest.mark.parametrize("at", [1, 4, 5])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_by_bit(
    train: Train, tmp_path: Path, interrupted: Any, assert_same_run: Any, at: int
) -> None:
    """Cut in the first step, at a checkpoint's own step and one step after it."""
    options: dict[str, Any] = {"ema": 0.9, "warmup_steps": 3, "baseline": "leave_one_out"}
    whole = train(FolderJournal(tmp_path / "whole"), **options)
    interrupted(lambda journal: train(journal, **options), tmp_path / "cut", at=at)
    again = train(FolderJournal(tmp_path / "cut"), **options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert [record["step"] for record in steps(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    start = load_captioner(tmp_path / "whole" / "best").state_dict()
    moved = load_captioner(tmp_path / "whole" / "checkpoints" / "step-000006").state_dict()
    assert any(not torch.equal(start[name], moved[name]) for name in start)


@pytest.mark.parametrize("at", [3, 5])
@pytest.mark.parametrize(
    "schedule", [{"kind": "linear", "to": 0.0}, {"kind": "plateau", "to": 0.25, "patience": 1, "min_gain": 9.0}]
)
def test_scheduled_weights_and_the_watch_survive_an_interruption(
    train: Train, tmp_path: Path, interrupted: Any, assert_same_run: Any, at: int, schedule: dict[str, Any]
) -> None:
    reward = {"weight": 1.0, "schedule": schedule}
    train(FolderJournal(tmp_path / "whole"), reward=reward, select_every=1)
    interrupted(lambda journal: train(journal, reward=reward, select_every=1), tmp_path / "cut", at=at)
    train(FolderJournal(tmp_path / "cut"), reward=reward, select_every=1)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    weights = [record["reward/bandit/weight"] for record in steps(tmp_path / "cut")]
    if schedule["kind"] == "linear":
        assert weights == pytest.approx([1 - step / 6 for step in range(1, 7)])
    else:  # the look before the first step sets the mark, the one after it finds nothing better
        assert weights == [1.0, *[0.25] * 5]
        assert [r["weights_switched"] for r in steps(tmp_path / "cut") if "weights_switched" in r] == [{"bandit": 0.25}]


def test_learning_and_generating_have_a_type_each(train: Train, tmp_path: Path) -> None:
    """Where their types differ the ratio says so; a learner of another type is told the same captions."""
    half = {"learner": {"precision": torch.bfloat16}, "rollout": {"rollout_precision": torch.bfloat16}}
    first = {}
    for name, types in {"neither": {}, **half}.items():
        train(FolderJournal(tmp_path / name), steps=1, precision=types)
        first[name] = steps(tmp_path / name)[0]
    assert first["neither"]["ratio_max_error"] < 1e-4
    assert min(first[name]["ratio_max_error"] for name in half) > 1e-3
    assert first["learner"]["rollouts"] == first["neither"]["rollouts"]
    assert first["learner"]["grad_norm"] != first["neither"]["grad_norm"]


class Forgetful(Turns):
    """Its rest takes all that moves away for real: what is used meanwhile is not a number."""

    kept: Sequence[torch.Tensor] = ()

    def _move(self, device: torch.device) -> None:
        tensors = [state[name] for state, name in self._away] + self.averages + [each.data for each in self.still]
        if not self._resting:
            self.kept = [tensor.clone() for tensor in tensors]
            for tensor in tensors:
                tensor.fill_(math.nan)
        for tensor, value in zip(tensors, self.kept if self._resting else tensors, strict=True):
            tensor.copy_(value)


def test_a_gpu_shared_by_turns_changes_nothing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Any, assert_same_run: Any
) -> None:
    """Interrupted or not; with everything that moves: optimizer, averages, the policy that the KL is measured to."""
    options: dict[str, Any] = {"ema": 0.5, "kl_weight": 0.1}
    train(FolderJournal(tmp_path / "apart"), **options)
    monkeypatch.setattr(learner, "Turns", Forgetful)
    options["cluster"] = {"collocated": True}
    interrupted(lambda journal: train(journal, **options), tmp_path / "turns", at=5)
    train(FolderJournal(tmp_path / "turns"), **options)
    assert_same_run(tmp_path / "apart", tmp_path / "turns")


def test_a_weight_of_0_teaches_nothing(train: Train, tmp_path: Path) -> None:
    train(FolderJournal(tmp_path), reward={"weight": 0.0})
    assert [record["grad_norm"] for record in steps(tmp_path)] == [0.0] * 6


def test_a_reward_that_climbs_while_select_falls_is_warned_of(train: Train, tmp_path: Path) -> None:
    class Climbing(Bandit):
        """Worth more every time it is asked."""

        asked = 0.0

        def worth(self, image_id: str, caption: str) -> float:
            self.asked += 0.01
            return self.asked

    looks = Scripted(0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5)
    train(FolderJournal(tmp_path), component=Climbing(), looks=looks, select_every=1, baseline="leave_one_out")
    warnings = [record["step"] for record in steps(tmp_path) if "climbed" in record.get("warning", "")]
    assert warnings == [4]


def test_a_broken_newest_checkpoint_costs_its_steps_and_nothing_else(
    train: Train, tmp_path: Path, assert_same_run: Any
) -> None:
    for name in ("whole", "broken"):
        train(FolderJournal(tmp_path / name))
    file = tmp_path / "broken" / "checkpoints" / "step-000006" / "trainer.pt"
    file.write_bytes(file.read_bytes()[:100])
    train(FolderJournal(tmp_path / "broken"))
    events = [record for record in read_log(tmp_path / "broken") if "event" in record]
    assert [event["folder"] for event in events] == ["step-000006"]
    log = tmp_path / "broken" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"event"' not in line))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_finished_run_is_not_gone_on_with(train: Train, tmp_path: Path) -> None:
    first = train(FolderJournal(tmp_path), steps=2)
    lines = (tmp_path / "log.jsonl").read_text()
    again = train(FolderJournal(tmp_path), steps=2)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert (tmp_path / "log.jsonl").read_text() == lines


def test_seeds_make_different_runs(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner, assert_same_run: Any
) -> None:
    for seed in (0, 1):
        start = make_captioner(tokenizer=WordTokenizer(WORDS))
        train(FolderJournal(tmp_path / str(seed)), start, seed=seed)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "0", tmp_path / "1")


def test_a_lease_s_samples_hang_on_seed_step_and_position(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """Not on the lease that an image came in, nor on its place there: a lost lease is redone by anybody."""
    captioner, recipe = make_captioner(tokenizer=WordTokenizer(WORDS)), SCSTRecipe(num_samples=3)
    prompts = [Prompt(image_id, 7 * n) for n, image_id in enumerate(tiny.captions)][:8]

    def said(step: int = 4, seed: int = 2, places: Sequence[int] = range(8), temperature: float = 1.0) -> list[Any]:
        lease = Lease(step, 0, tuple(prompts[place] for place in places))
        hot = recipe.model_copy(update={"temperature": temperature})
        made = generate_lease(captioner, tiny.grid, lease, hot, max_length=6, seed=seed)
        return [(made.captions[3 * n : 3 * n + 3], made.greedy_captions[n]) for n in range(len(places))]

    whole = said()
    assert said(places=[5, 2]) == [whole[5], whole[2]]
    features = torch.from_numpy(tiny.grid.get([prompt.image_id for prompt in prompts]))
    by_hand = generate(captioner, features, positions=[7 * n for n in range(8)], num_samples=3, greedy=True,
                       max_length=6, seed=2, step=4)  # fmt: skip
    assert [captions for captions, _ in whole] == [by_hand.captions[3 * n : 3 * n + 3] for n in range(8)]
    for other in (said(step=5), said(seed=3), said(temperature=3.0)):
        assert [captions for captions, _ in other] != [captions for captions, _ in whole]
        assert [greedy for _, greedy in other] == [greedy for _, greedy in whole]


def test_looks_and_checkpoints_come_when_they_are_due(train: Train, tmp_path: Path) -> None:
    """At the start, every second step, and at the end although five is odd; the best look is what is kept."""
    done = train(FolderJournal(tmp_path), looks=Scripted(0.5, 0.9, 0.7, 0.8), steps=5, select_every=2)
    records = read_log(tmp_path)
    assert [(r["step"], r["select_cider"], r["best"]) for r in records if "select_cider" in r] == [
        (0, 0.5, True), (2, 0.9, True), (4, 0.7, False), (5, 0.8, False),
    ]  # fmt: skip
    names = [folder.name for folder in FolderJournal(tmp_path).checkpoints]
    assert names == ["step-000004", "step-000005"], "the newest two"
    assert read_about(tmp_path / "best")["step"] == 2
    assert {k: v for k, v in done.items() if k != "seconds"} == {
        "best_cider": 0.9, "best_step": 2, "start_cider": 0.5, "steps": 5,
    }  # fmt: skip
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5]
    assert all(r["total_steps"] == 5 for r in records)


def test_the_start_is_kept_when_nothing_later_is_better(
    train: Train, tmp_path: Path, make_captioner: MakeCaptioner
) -> None:
    start = make_captioner(tokenizer=WordTokenizer(WORDS))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    done = train(FolderJournal(tmp_path), start, looks=Scripted(0.9, 0.8, 0.7, 0.6))
    assert done["best_step"] == 0
    kept = load_captioner(tmp_path / "best").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())


def test_a_look_is_at_the_averaged_weights_and_training_goes_on_with_its_own(train: Train, tmp_path: Path) -> None:
    """With an average the best captioner is not the checkpoint's, and without one it is."""
    differ = {}
    for ema in (0.0, 0.9):
        folder = tmp_path / str(ema)
        train(FolderJournal(folder), looks=Scripted(0.1, 0.2, 0.3, 0.4), ema=ema)
        best, newest = (
            load_captioner(folder / name).state_dict() for name in ("best", "checkpoints/step-000006")
        )  # fmt: skip
        differ[ema] = any(not torch.equal(best[name], newest[name]) for name in best)
    assert differ == {0.0: False, 0.9: True}
    # what is trained does not depend on who looks on
    live = [load_captioner(tmp_path / e / "checkpoints/step-000006").state_dict() for e in ("0.0", "0.9")]
    assert all(torch.equal(live[0][name], live[1][name]) for name in live[0])


def test_collapse_stops_the_run_and_the_best_is_kept(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Collapsed, match=r"from 0.8000 to 0.3000 at step 4") as stopped:
        train(FolderJournal(tmp_path), looks=Scripted(0.8, 0.85, 0.3), collapse_share=0.5)
    assert "leave_one_out" in str(stopped.value)
    assert read_about(tmp_path / "best")["step"] == 2
    assert [folder.name for folder in FolderJournal(tmp_path).checkpoints] == ["step-000002"]


def test_a_reward_that_fails_stops_the_run_before_anything_is_learned(train: Train, tmp_path: Path) -> None:
    class Failing(Bandit):
        def worth(self, image_id: str, caption: str) -> float:
            return math.nan if image_id == "img_011" else 1.0

    with pytest.raises(RewardError, match=r"rewards.bandit.*'img_011'"):
        train(FolderJournal(tmp_path), component=Failing(), batch_size=24)
    assert [record["step"] for record in read_log(tmp_path)] == [0]


def test_the_policy_behind_every_step_is_the_learner_s_own(train: Train, tmp_path: Path) -> None:
    train(FolderJournal(tmp_path))
    for record in steps(tmp_path):
        assert record["ratio_max_error"] < 1e-4
        assert record["ess"] > 1 - 1e-4
        assert math.isfinite(record["pg_loss"])


@pytest.mark.parametrize(
    ("baseline", "sampled", "greedy", "warned"),
    [("greedy", 0.24, 0.85, True), ("greedy", 0.7, 0.85, False), ("leave_one_out", 0.24, 0.85, False),
     ("greedy", 0.0, 0.0, False), ("greedy", -0.5, -0.1, False)],
)  # fmt: skip
def test_a_greedy_baseline_far_above_the_samples_is_warned_of(
    baseline: str, sampled: float, greedy: float, warned: bool
) -> None:
    recipe = SCSTRecipe(baseline=baseline)  # type: ignore[arg-type]
    values = {"pg_loss": 1.0, "reward/cider/sampled": sampled, "reward/cider/greedy": greedy, "reward/cider/share": 1}
    said = far_below_greedy(recipe, values)
    assert bool(said) is warned
    if warned:
        for part in ("0.240", "0.850", "cider", "scst.baseline=leave_one_out"):
            assert part in said


def test_the_warning_stands_in_the_log_of_the_first_step(train: Train, tmp_path: Path) -> None:
    class Unfair(Bandit):
        """Greedy captions come last in a batch."""

        def score(self, batch: CaptionBatch) -> list[float | None]:
            return [0.1] * len(batch.captions[: -len(set(batch.image_ids))]) + [1.0] * len(set(batch.image_ids))

    train(FolderJournal(tmp_path), component=Unfair(), steps=2, baseline="greedy", max_length=8)
    first, second = steps(tmp_path)
    assert ("warning" in first) == (first["reward/bandit/sampled"] < 0.6 * first["reward/bandit/greedy"])
    assert "warning" in first
    assert "warning" not in second
