"""Maximum likelihood (HAR eq. 1, the self-supervised paper's L_supv) in one process, top to bottom.

Per step: images with several captions each, their prefix once, cross-entropy a token, AdamW. Per epoch: loss and greedy
CIDEr-D on `select`, a checkpoint, and the best captioner so far. It stops when `select` no longer improves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raycap.data.features import FeatureStore
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import MLERecipe
from raycap.train.group import Alone, Group, of_first
from raycap.train.journal import Journal, writing
from raycap.train.labelled import LabelledSet
from raycap.train.labelled_pass import cross_entropy_gradients
from raycap.train.optimizing import Average, adamw, clip_gradients, set_lr
from raycap.train.resuming import load_training_state, training_state
from raycap.train.schedules import warmup_cosine
from raycap.train.seeding import DROPOUT, seed_torch
from raycap.train.standing import Standing
from raycap.train.stopping import stop_if_asked
from raycap.train.validation import BestKeeper, Validator
from raycap.whole_file import write_whole


@dataclass(frozen=True)
class Control:
    """How long to go on whatever `select` says: the control "MLE continued".

    Attributes:
        steps: planned steps; the learning rate falls over them.
        seconds: when given, the steps are those that take so long: once a quarter of the seconds is over its pace says
            how many, and that number holds, whatever happens to the pace or the process afterwards.
        record: file with that number, JSON; a resumed control takes it from there.
    """

    steps: int
    seconds: float | None = None
    record: Path | None = None


_PACE_SHARE = 0.25


def train_mle(
    captioner: PrefixCaptioner,
    labelled: LabelledSet,
    features: FeatureStore,
    validator: Validator,
    recipe: MLERecipe,
    *,
    seed: int,
    journal: Journal,
    group: Group | None = None,
    control: Control | None = None,
    precision: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train until `select` no longer improves, or as the `control` says when given.

    Args:
        captioner: trained in place, held as the group does; at the end it holds the last step's weights, the best ones
            are in the journal.
        labelled: captions that may be read. Each rank takes its share of every batch's images.
        precision: of products; parameters, sums and the optimizer are float32.

    Returns:
        best_cider, best_step, steps, seconds.
    """
    group = group or Alone()
    shown = group.shown(captioner)
    group.hold(captioner)
    optimizer = adamw(captioner, lr=recipe.lr, weight_decay=recipe.weight_decay)
    average, so_far = Average(captioner, recipe.ema), _SoFar()
    keeper, standing = so_far.keeper, Standing(captioner, shown, optimizer, average)
    once = labelled.steps_per_epoch(recipe.batch_size)
    per_epoch = once * -(-recipe.epoch_steps // once)  # whole passes over the images
    step, seconds = load_training_state(journal, captioner, optimizer, average, so_far, group)
    if control and step == 0:  # the control keeps what it started from when nothing later is better
        standing.collect(state=True)
        with standing.averaged() as seen:
            _look(seen, validator, keeper, journal, 0, group)
    length = _Controlled(control, group, seconds) if control else _Patient(recipe, per_epoch, keeper, seconds)
    captioner.train()
    elapsed = seconds

    def save_here() -> None:
        standing.collect(state=True)
        journal.save(step, standing.captioner, training_state(standing, so_far, elapsed))

    while not length.over(step):
        factor = warmup_cosine(step, warmup=recipe.warmup_steps, total=length.total, floor=recipe.lr_floor)
        set_lr(optimizer, recipe.lr * factor)
        so_far.losses.append(_step(captioner, labelled, features, recipe, optimizer, seed, step, group, precision))
        average.update()
        step += 1
        elapsed = length.measure(step)
        record: dict[str, Any] = {"step": step}
        due = length.over(step) or step % per_epoch == 0
        if due:
            standing.collect(state=True)
            with standing.averaged() as seen:
                record |= _look(seen, validator, keeper, journal, step, group)
            record |= {"epoch": step / once, "train_loss": sum(so_far.losses) / len(so_far.losses),
                       "lr": optimizer.param_groups[0]["lr"]}  # fmt: skip
            so_far.losses = []
            elapsed = length.measure(step)
        journal.log({**record, "total_steps": length.total, "seconds": elapsed})
        if due:
            save_here()
        if not length.over(step):
            journal.save_if_asked(step, save_here)
            stop_if_asked(group, journal.stop_asked(), step, save_here)
    return {"best_cider": keeper.best, "best_step": keeper.best_step, "steps": step, "seconds": length.spent()}


class _Patient:
    """MLE goes on for so many epochs at most, as long as `select` gets better.

    Attributes:
        total: steps that the learning rate falls over.
    """

    def __init__(self, recipe: MLERecipe, per_epoch: int, keeper: BestKeeper, seconds: float) -> None:
        self.total, self._patience, self._keeper = recipe.epochs * per_epoch, recipe.patience, keeper
        self._begun = time.perf_counter() - seconds

    def spent(self) -> float:
        """Seconds of training, those before an interruption too."""
        return time.perf_counter() - self._begun

    def measure(self, step: int) -> float:
        """After a step, or a look: seconds so far."""
        return self.spent()

    def over(self, step: int) -> bool:
        return step >= self.total or self._keeper.looks_since >= self._patience


class _Controlled:
    """The control goes on as `Control` says. Where that hangs on seconds, rank 0's decide for all ranks.

    Attributes:
        total: steps that the learning rate falls over: where seconds end it, what the pace so far foretells, so that
            the cosine arrives with them.
    """

    def __init__(self, control: Control, group: Group, seconds: float) -> None:
        self._control, self._group = control, group
        self._begun = time.perf_counter() - seconds
        recorded = _recorded_steps(control, group)
        self.total = recorded or control.steps
        self._limit = None if recorded else control.seconds  # as long as it says no number of steps
        self._elapsed = self._of_all()

    def spent(self) -> float:
        return time.perf_counter() - self._begun

    def _of_all(self) -> float:
        return self.spent() if self._limit is None else of_first(self._group, [self.spent()])[0]

    def measure(self, step: int) -> float:
        self._elapsed = self._of_all()
        if self._limit is not None:
            over = self._elapsed >= self._limit
            self.total = step if over else max(step + 1, math.ceil(step * self._limit / self._elapsed))
            if self._elapsed >= _PACE_SHARE * self._limit:
                self._limit = None
                _record_steps(self._control, self.total, self._group)
        return self._elapsed

    def over(self, step: int) -> bool:
        return self._elapsed >= self._limit if self._limit is not None else step >= self.total


class _SoFar:
    """What goes into a checkpoint beside weights and optimizer: the looks at `select`, and an epoch's losses so far."""

    def __init__(self) -> None:
        self.keeper, self.losses = BestKeeper(), list[float]()

    def state_dict(self) -> dict[str, Any]:
        return {**self.keeper.state_dict(), "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = list(state.get("losses", ()))  # older checkpoints were written at the end of an epoch alone
        self.keeper.load_state_dict({key: value for key, value in state.items() if key != "losses"})


def _step(
    captioner: PrefixCaptioner, labelled: LabelledSet, features: FeatureStore, recipe: MLERecipe,
    optimizer: torch.optim.Optimizer, seed: int, step: int, group: Group, precision: torch.dtype,
) -> float:  # fmt: skip
    """One optimizer step; the mean cross-entropy a token over all ranks."""
    captions = recipe.captions_per_image
    batch = labelled.batch(step, batch_size=recipe.batch_size, captions_per_image=captions, seed=seed)
    seed_torch(seed, DROPOUT, step, group.rank)
    optimizer.zero_grad(set_to_none=True)
    mine = cross_entropy_gradients(captioner, batch, features, recipe, group, captions_per_image=captions, seed=seed,
                                   step=step, precision=precision)  # fmt: skip
    group.sum_gradients(captioner.parameters())
    clip_gradients(captioner.parameters(), recipe.grad_clip, step=step, remedy="lower mle.lr (mle_continued.lr)")
    optimizer.step()
    return group.sum_values([mine])[0]


def _recorded_steps(control: Control, group: Group) -> int:
    """The number that an interrupted control had found; 0 where none had.

    Rank 0 reads for all: a slow storage shows a file to one rank before another, and who knows the number no longer
    asks the others for their seconds.
    """
    if not control.record:
        return 0
    steps = 0
    if group.rank == 0 and control.record.exists():
        found = json.loads(control.record.read_text())
        steps = 0 if "seconds" in found else int(found["steps"])  # with them it is the guess of an older raycap
    return int(of_first(group, [steps])[0])


def _record_steps(control: Control, steps: int, group: Group) -> None:
    if control.record and group.rank == 0:
        with writing(control.record.parent, "the control's number of steps"):
            write_whole(control.record, json.dumps({"steps": steps}))


def _look(
    captioner: PrefixCaptioner, validator: Validator, keeper: BestKeeper, journal: Journal, step: int, group: Group
) -> dict[str, Any]:
    # Rank 0 looks for all: were each to look, two processors could disagree on when patience is over.
    seen = [validator.cider(captioner), validator.xe_loss(captioner)] if group.rank == 0 else [0.0, 0.0]
    cider, xe_loss = group.sum_values(seen)
    best = keeper.look(cider, step)
    if best:
        journal.save_best(captioner, {"step": step, "select_cider": cider})
    return {"select_cider": cider, "select_xe_loss": xe_loss, "best": best}
