"""The learner's half of SCST on Ray: take a step's rollouts from the Exchange, learn, publish.

The body is that of `raycap.train.scst`; what differs is where rollouts come from and where weights go.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from raycap.cluster.tasks import on
from raycap.cluster.train_job import built_together, rank_journal, together, training_group
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.errors import RaycapError
from raycap.models.checkpoint import load_captioner
from raycap.models.recompute import recompute_blocks
from raycap.recipe import Recipe
from raycap.rewards.mix import Mix
from raycap.train.journal import Journal
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.optimizing import Group
from raycap.train.resuming import load_training_state, same_step
from raycap.train.scst import finish_step, first_look, summary
from raycap.train.steering import Steering
from raycap.train.validation import Validator
from raycap.whole_file import write_whole


def scst_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every rank of a Ray Train job.

    Args:
        config: exchange (handle), recipe, seed, device, precision; start, features, folder (paths as strings);
            select_references; about; prepared (path) and labelled (image ids) for `scst.mle_weight`.
    """
    import ray

    recipe: Recipe = config["recipe"]
    exchange = config["exchange"]
    group = training_group()
    journal = rank_journal(config["folder"], group, keep=recipe.scst.keep_checkpoints, about=config["about"])
    learner, steering, seconds = built_together(group, lambda: _set_up(config, journal, group))
    validator = Validator(config["select_references"], learner.features, max_length=recipe.captioner.max_length)
    same_step(group, learner.step)
    started = time.perf_counter()
    error: RaycapError | None = None
    if group.rank == 0:
        learner.incarnation = next_incarnation(Path(config["folder"]))
        ray.get(exchange.reset.remote(learner.incarnation, learner.step))
        _publish(exchange, learner)
        if learner.step == 0:
            try:
                first_look(learner, validator, steering, journal)
            except RaycapError as raised:
                error = raised
    learner.incarnation = int(group.sum_values([float(learner.incarnation) if group.rank == 0 else 0.0])[0])
    while learner.step < recipe.scst.steps:
        queue = _queue(exchange, group)
        marks = [time.perf_counter()]
        rollouts, error = _take(exchange, learner, group, recipe.cluster.lease_timeout_s, error)
        marks.append(time.perf_counter())
        values = learner.update(rollouts)
        marks.append(time.perf_counter())
        if group.rank == 0:
            _publish(exchange, learner)
        marks.append(time.perf_counter())
        values |= queue | _health(rollouts, learner.step - 1, marks, recipe.cluster.rollout_workers, group)
        if group.rank == 0:
            try:
                finish_step(learner, values, validator, steering, journal, seconds + time.perf_counter() - started)
            except RaycapError as raised:  # told to all ranks at the next take
                error = raised
    together(group, error)  # the last look's
    seconds += time.perf_counter() - started
    return summary(learner, steering.keeper, seconds)


def _set_up(config: dict[str, Any], journal: Journal, group: Group) -> tuple[Learner, Steering, float]:
    """Learner and what watches it, where the last checkpoint left them, and the seconds spent so far."""
    import torch

    recipe: Recipe = config["recipe"]
    features = FeatureStore.open(Path(config["features"]))
    captioner = load_captioner(Path(config["start"])).to(on(config["device"]))
    mix = Mix(recipe.rewards, recipe.scst.steps)
    if recipe.cluster.learner_recompute:
        recompute_blocks(captioner)
    labelled = None
    if recipe.scst.mle_weight:
        dataset = PreparedDataset.open(config["prepared"])
        captions = {image_id: dataset.references(image_id) for image_id in config["labelled"]}
        labelled = LabelledSet(captions, captioner.tokenizer, recipe.captioner.max_length)
    learner = Learner(captioner, features, recipe.scst, mix, group, seed=config["seed"],
                      precision=getattr(torch, config["precision"]), labelled=labelled)  # fmt: skip
    steering = Steering(mix, recipe.scst.collapse_share, recipe.scst.watch_looks)
    learner.step, seconds = load_training_state(journal, captioner, learner.optimizer, learner.average, steering)
    return learner, steering, seconds


def next_incarnation(folder: Path) -> int:
    """Count the learner's starts in its stage's folder; the number of this one."""
    file = folder / "incarnation"
    number = int(file.read_text()) + 1 if file.exists() else 0
    write_whole(file, str(number))
    return number


def _publish(exchange: Any, learner: Learner) -> None:
    """Put the weights once; the Exchange passes the reference on.

    The reference's owner is this process: when it dies the object dies, and the restarted learner publishes anew.
    """
    import ray

    published = learner.publish()
    ray.get(exchange.publish.remote(published.weights_id, [ray.put(published)]))


def _take(
    exchange: Any, learner: Learner, group: Group, timeout_s: float, error: RaycapError | None
) -> tuple[list[Any], RaycapError | None]:
    """This rank's rollouts of a step. An error of any rank ends all ranks here, together."""
    import ray

    rollouts: list[Any] = []
    if error is None:
        try:
            ask = (learner.step, group.rank, group.size, timeout_s, learner.incarnation)
            rollouts = ray.get(exchange.take.remote(*ask))
        except ray.exceptions.RayTaskError as raised:
            if not isinstance(raised.cause, RaycapError):
                raise
            error = raised.cause
    together(group, error)
    return rollouts, None


def _queue(exchange: Any, group: Group) -> dict[str, int]:
    """How many leases are in each state when the learner asks for its step."""
    import ray

    if group.rank:
        return {}
    states = ray.get(exchange.status.remote())["states"]
    return {f"queue/{state}": states.get(state, 0) for state in ("pending", "leased", "ready")}


def _health(rollouts: list[Any], step: int, marks: list[float], workers: int, group: Group) -> dict[str, float]:
    """Where a step's seconds went: this rank's by part, the actors' by part (sums over leases), shares of idleness.

    Args:
        marks: before the take, after it, after the update, after the publication; seconds of one clock.
    """
    parts = ("weights", "generate", "reward")
    lags = [step - r.weights_id.policy_version for r in rollouts]
    mine = [*(sum(r.seconds.get(part, 0.0) for r in rollouts) for part in parts), sum(lags), len(lags)]
    *busy, lag, leases = group.sum_values([float(value) for value in mine])
    wait, learn, publish = (after - before for before, after in itertools.pairwise(marks))
    whole = max(marks[-1] - marks[0], 1e-9)
    return {
        "seconds/wait": wait, "seconds/learn": learn, "seconds/publish": publish,
        **{f"seconds/{part}": value for part, value in zip(parts, busy, strict=True)},
        "idle/learner": wait / whole,
        # at lag > 0 actors work ahead: in a step they may have been busy for longer than it took
        "idle/actors": max(0.0, 1.0 - sum(busy) / (workers * whole)),
        "policy_lag": lag / max(1.0, leases),
    }  # fmt: skip
