"""What ranks that share the captioner out leave behind is whole: their checkpoints go on in one process, and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.data.features import FeatureStore
from raycap.errors import Stopped, WorkFailed
from raycap.models.checkpoint import load_captioner
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import WordTokenizer
from raycap.recipe import MLERecipe, SCSTRecipe
from raycap.train.group import Alone, DistributedGroup
from raycap.train.journal import FolderJournal, read_log
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.mle import train_mle
from raycap.train.resuming import load_training_state
from raycap.train.scst import look, save
from raycap.train.sharding import ShardingGroup
from raycap.train.steering import Steering
from raycap.train.validation import Validator
from raycap.types import Rollouts
from tests.conftest import TinyData, write_features
from tests.train.conftest import trainer_state, without_seconds
from tests.train.test_learner import Picky, recipe_of, roll_out
from tests.train.test_mle import Nowhere
from tests.train.test_sharding import assert_near
from tests.two_ranks import TwoRanks

GROUPS: dict[str, Callable[[], Any]] = {"alone": Alone, "none": DistributedGroup, "fsdp": ShardingGroup}
Captions = dict[str, tuple[str, ...]]


class StopsAt(FolderJournal):
    """Is asked to stop after a step."""

    def __init__(self, folder: Path, at: int | None) -> None:
        super().__init__(folder)
        self.at, self.logged = at, 0

    def log(self, record: Any) -> None:
        self.logged = record.get("step", 0)
        super().log(record)

    def stop_asked(self) -> str:
        return "for this test" if self.logged == self.at else ""


def on(two_ranks: TwoRanks, how: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Rank 0's answer; alone it is this process."""
    return work(how, *arguments) if how == "alone" else two_ranks(work, how, *arguments)[0]


def learn_by_heart(
    how: str, captioner: PrefixCaptioner, features: Path, captions: Captions, select: Captions, recipe: MLERecipe,
    folder: Path, stop_at: int | None = None,
) -> Any:  # fmt: skip
    """MLE; the error that ended it, or what it returned."""
    group = GROUPS[how]()
    journal = Nowhere(folder) if group.rank else StopsAt(folder, stop_at)
    store = FeatureStore.open(features)
    assert isinstance(captioner.tokenizer, WordTokenizer)
    labelled = LabelledSet(captions, captioner.tokenizer, 10)
    try:
        return train_mle(captioner, labelled, store, Validator(select, store, max_length=10), recipe, seed=3,
                         journal=journal, group=group)  # fmt: skip
    except (Stopped, WorkFailed) as error:
        return type(error).__name__, str(error)


def mle_of(**given: Any) -> MLERecipe:
    return MLERecipe(**{"epochs": 3, "patience": 9, "batch_size": 5, "captions_per_image": 2, "micro_batch": 2,
                        "lr": 0.003, "warmup_steps": 3, "ema": 0.8, **given})  # fmt: skip


@pytest.fixture
def learner_of_scenes(make_captioner: Callable[..., PrefixCaptioner], tiny: TinyData) -> Callable[..., Any]:
    """made(**config): arguments of `learn_by_heart` before the recipe."""

    def made(**config: Any) -> tuple[Any, ...]:
        captioner = make_captioner("llama", tokenizer=tiny.tokenizer, spread=0.1, **config)
        return captioner, tiny.grid.folder, tiny.train, tiny.select

    return made


def assert_same_place(one: Path, other: Path, atol: float = 1e-5) -> None:
    """Newest checkpoints, their trainers' states, the best captioners and the last lines of the logs agree."""
    newest = [FolderJournal(folder).checkpoints[-1] for folder in (one, other)]
    assert newest[0].name == newest[1].name
    assert_near(trainer_state(newest[0]), trainer_state(newest[1]), atol, "trainer")
    best = [folder / "best" for folder in (one, other)]
    for a, b in (newest, best) if all(map(Path.exists, best)) else (newest,):
        assert_near(dict(load_captioner(a).state_dict()), dict(load_captioner(b).state_dict()), atol, a.name)


def test_mle_on_shards_is_mle_on_whole_captioners(
    two_ranks: TwoRanks, tmp_path: Path, learner_of_scenes: Callable[..., Any]
) -> None:
    """Dropout of words and features on; batches of five images: three passes of one rank, two of the other."""
    given = learner_of_scenes(feature_dropout=0.2, word_dropout=0.2)
    for how in ("none", "fsdp"):
        done = on(two_ranks, how, learn_by_heart, *given, mle_of(), tmp_path / how)
        assert done["steps"] == 9
    assert_same_place(tmp_path / "fsdp", tmp_path / "none")
    logs = [without_seconds(tmp_path / how) for how in ("fsdp", "none")]
    assert_near(logs[0], logs[1], 1e-4, "log")
    assert sum("select_cider" in record for record in logs[0]) == 3


@pytest.mark.parametrize(("first", "then"), [("fsdp", "alone"), ("alone", "fsdp")])
def test_mle_goes_on_from_the_other_s_checkpoint(
    two_ranks: TwoRanks, tmp_path: Path, learner_of_scenes: Callable[..., Any], first: str, then: str
) -> None:
    """Stopped in the second epoch, gone on with: as if it had been one process all along."""
    learn_by_heart("alone", *learner_of_scenes(), mle_of(), tmp_path / "whole")
    stopped = on(two_ranks, first, learn_by_heart, *learner_of_scenes(), mle_of(), tmp_path / "cut", 5)
    assert stopped[0] == "Stopped"
    assert [folder.name for folder in FolderJournal(tmp_path / "cut").checkpoints] == ["step-000003", "step-000005"]
    done = on(two_ranks, then, learn_by_heart, *learner_of_scenes(), mle_of(), tmp_path / "cut")
    assert done["steps"] == 9
    assert_same_place(tmp_path / "cut", tmp_path / "whole")
    assert [r["step"] for r in read_log(tmp_path / "cut")] == list(range(1, 10))


def test_an_image_that_is_not_finite_ends_mle_on_both_ranks(
    two_ranks: TwoRanks, tmp_path: Path, tiny: TinyData, learner_of_scenes: Callable[..., Any]
) -> None:
    captioner, _, captions, select = learner_of_scenes()
    spoilt = {i: tiny.grid.get([i])[0].copy() for i in tiny.captions}
    spoilt[next(iter(captions))][0, 0] = np.nan
    folder = write_features(tmp_path / "features", spoilt).folder
    ended = two_ranks(learn_by_heart, "fsdp", captioner, folder, captions, select, mle_of(), tmp_path / "run")
    assert [what for what, _ in ended] == ["WorkFailed"] * 2
    assert all("is not finite" in why for _, why in ended)


def take_steps(
    how: str, captioner: PrefixCaptioner, features: Path, recipe: SCSTRecipe, steps: Sequence[Sequence[Rollouts]],
    select: Captions, folder: Path,
) -> int:  # fmt: skip
    """SCST from the newest checkpoint on, as far as there are captions, with a look and a checkpoint at the end."""
    group = GROUPS[how]()
    journal = Nowhere(folder) if group.rank else FolderJournal(folder)
    store = FeatureStore.open(features)
    learner = Learner(captioner, store, recipe, {"r": 1.0}, group)
    steering = Steering(learner.mix)
    learner.step, _ = load_training_state(journal, captioner, learner.optimizer, learner.average, steering, group)
    for rollouts in itertools.islice(steps, learner.step, None):
        learner.update(list(rollouts[group.rank :: group.size]))
    learner.standing.collect(state=True)
    if not group.rank:
        look(learner, Validator(select, store, max_length=8), steering, journal)
        save(learner, steering, journal, 0.0)
    return learner.step


@pytest.mark.parametrize(("first", "then"), [("fsdp", "alone"), ("alone", "fsdp")])
def test_scst_goes_on_from_the_other_s_checkpoint(
    two_ranks: TwoRanks, tmp_path: Path, tiny: TinyData, learner_of_scenes: Callable[..., Any], first: str, then: str
) -> None:
    recipe = recipe_of(micro_batch=8, ema=0.9, kl_weight=0.1, grad_clip=1.0, baseline="leave_one_out")

    def start() -> PrefixCaptioner:
        captioner: PrefixCaptioner = learner_of_scenes()[0]
        return captioner

    steps = [roll_out(start(), tiny.grid, recipe, {"r": Picky()}, step=step) for step in range(4)]
    rest = (tiny.select, tmp_path / "cut")
    take_steps("alone", start(), tiny.grid.folder, recipe, steps[:2], tiny.select, tmp_path / "whole")
    take_steps("alone", start(), tiny.grid.folder, recipe, steps, tiny.select, tmp_path / "whole")
    assert on(two_ranks, first, take_steps, start(), tiny.grid.folder, recipe, steps[:2], *rest) == 2
    assert on(two_ranks, then, take_steps, start(), tiny.grid.folder, recipe, steps, *rest) == 4
    assert_same_place(tmp_path / "cut", tmp_path / "whole")
    moved = load_captioner(FolderJournal(tmp_path / "whole").checkpoints[-1]).state_dict()
    before = start().state_dict()
    assert max(float((moved[name] - before[name]).abs().max()) for name in before) > 1e-3
