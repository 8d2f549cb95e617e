"""The learner's half of SCST on Ray: take a step's rollouts from the Exchange, learn, publish.

The body is that of `raycap.train.scst`; what differs is where rollouts come from and where weights go.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

from raycap.cluster.reaching import away, reached
from raycap.cluster.tasks import on
from raycap.cluster.train_job import built_together, rank_journal, together, training_group
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.errors import RaycapError, WorkFailed
from raycap.models.checkpoint import load_captioner
from raycap.models.recompute import recompute_blocks
from raycap.recipe import Recipe
from raycap.rewards.mix import Mix
from raycap.train.journal import Journal
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.optimizing import Group
from raycap.train.resuming import load_training_state, same_step
from raycap.train.scst import finish_step, first_look, save, summary
from raycap.train.steering import Steering
from raycap.train.stopping import stop_if_asked
from raycap.train.validation import Validator
from raycap.whole_file import write_whole


def scst_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every rank of a Ray Train job.

    Args:
        config: exchange (handle), recipe, seed, device, precision; start, features, folder (paths as strings);
            select_references; about; prepared (path) and labelled (image ids) for `scst.mle_weight`.
    """
    recipe: Recipe = config["recipe"]
    exchange = config["exchange"]
    group = training_group()
    journal = rank_journal(
        config["folder"], group, keep=recipe.scst.keep_checkpoints, about=config["about"], logging=recipe.logging
    )
    learner, steering, seconds = built_together(group, lambda: _set_up(config, journal, group))
    validator = Validator(config["select_references"], learner.features, max_length=recipe.captioner.max_length)
    same_step(group, learner.step)
    started = time.perf_counter()
    error: RaycapError | None = None
    if group.rank == 0:
        learner.incarnation = next_incarnation(Path(config["folder"]))
        reached(lambda: exchange.reset.remote(learner.incarnation, learner.step))
        _publish(exchange, learner)
        if learner.step == 0:
            try:
                first_look(learner, validator, steering, journal)
            except RaycapError as raised:
                error = raised
    learner.incarnation = _of_rank_0(learner.incarnation, group)
    known = True  # by the Exchange: false once it answers like a new one
    while learner.step < recipe.scst.steps:
        known = bool(_of_rank_0(known, group))
        queue = _queue(exchange, group)
        marks = [time.perf_counter()]
        rollouts, error = _take(
            exchange, learner, group, config["folder"], recipe.cluster.stall_timeout_s, error, known
        )
        marks.append(time.perf_counter())
        values = learner.update(rollouts)
        marks.append(time.perf_counter())
        if group.rank == 0:
            known = _publish(exchange, learner)
        marks.append(time.perf_counter())
        values |= queue | _health(rollouts, learner.step - 1, marks, recipe.cluster.rollout_workers, group)
        elapsed = seconds + time.perf_counter() - started
        if group.rank == 0:
            try:
                finish_step(learner, values, validator, steering, journal, elapsed)
            except RaycapError as raised:  # told to all ranks at the next take
                error = raised
        why = journal.stop_asked() if error is None else ""
        stop_if_asked(group, why, learner.step, partial(save, learner, steering, journal, elapsed))
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


def _of_rank_0(number: int, group: Group) -> int:
    return int(group.sum_values([float(number) if group.rank == 0 else 0.0])[0])


def _publish(exchange: Any, learner: Learner) -> bool:
    """Put the weights once; the Exchange passes the reference on. False when it does not know this learner, or is away.

    The reference's owner is this process: when it dies the object dies, and the restarted learner publishes anew.
    """
    import ray

    learner.published = published = learner.publish(learner.published)  # the one before was copied by `put`
    try:
        return bool(ray.get(exchange.publish.remote(published.weights_id, [ray.put(published)])))
    except ray.exceptions.RayActorError as error:
        if not away(error):
            raise
        return False


def _take(
    exchange: Any, learner: Learner, group: Group, folder: str, timeout_s: float, error: RaycapError | None, known: bool
) -> tuple[list[Any], RaycapError | None]:
    """This rank's rollouts of a step. An error of any rank ends all ranks here, together; an Exchange that was lost is
    told where the learner stands, and the step is asked for again."""
    import ray

    while True:
        rollouts: list[Any] | None = None
        if error is None and known:
            try:
                ask = (learner.step, group.rank, group.size, timeout_s, learner.incarnation)
                rollouts = ray.get(exchange.take.remote(*ask))
            except ray.exceptions.RayTaskError as raised:
                if not isinstance(raised.cause, RaycapError):
                    raise
                error = raised.cause
            except ray.exceptions.RayActorError as raised:
                if not away(raised):
                    raise
        together(group, error)
        if not group.sum_values([float(rollouts is None)])[0]:
            assert rollouts is not None
            return rollouts, None
        _introduce(exchange, learner, group, folder)
        known = True


def _introduce(exchange: Any, learner: Learner, group: Group, folder: str) -> None:
    """To an Exchange that is new: what was out at the old one is dropped, and its step generated again."""
    error: RaycapError | None = None
    if group.rank == 0:
        print(f"the Exchange was lost; step {learner.step} is generated again", flush=True)
        learner.incarnation = next_incarnation(Path(folder))
        try:
            reached(lambda: exchange.reset.remote(learner.incarnation, learner.step))
        except Exception as raised:  # noqa: BLE001 - whatever Ray calls it, all ranks must hear of it
            error = WorkFailed(f"the Exchange did not come back: {raised}"[:500], key="exchange",
                               remedy="run the same command again")  # fmt: skip
        else:
            _publish(exchange, learner)  # should it be away once more, the next take says so
    together(group, error)
    learner.incarnation = _of_rank_0(learner.incarnation, group)


def _queue(exchange: Any, group: Group) -> dict[str, int]:
    """How many leases are in each state when the learner asks for its step."""
    import ray

    if group.rank:
        return {}
    try:
        states = ray.get(exchange.status.remote())["states"]
    except ray.exceptions.RayActorError as error:
        if not away(error):
            raise
        return {}
    return {f"queue/{state}": states.get(state, 0) for state in ("pending", "leased", "ready")}


def _health(rollouts: list[Any], step: int, marks: list[float], workers: int, group: Group) -> dict[str, float]:
    """Where a step's seconds went: this rank's by part, the actors' by part (sums over leases), shares of idleness.

    Args:
        marks: before the take, after it, after the update, after the publication; seconds of one clock.
    """
    parts = ("weights", "generate", "reward")
    lags = [step - r.weights_id.policy_version for r in rollouts]
    names = sorted({name for r in rollouts for name in r.scores})
    mine = [*(sum(r.seconds.get(part, 0.0) for r in rollouts) for part in parts), sum(lags), len(lags)]
    *busy, lag, leases = group.sum_values([float(value) for value in mine])
    wait, learn, publish = (after - before for before, after in itertools.pairwise(marks))
    whole = max(marks[-1] - marks[0], 1e-9)
    return {
        "seconds/wait": wait, "seconds/learn": learn, "seconds/publish": publish,
        **{f"seconds/{part}": value for part, value in zip(parts, busy, strict=True)},
        # the components' own work, of this rank's leases; `seconds/reward` is the wait for them, queues included
        **{f"seconds/reward/{name}": sum(r.scores[name].seconds for r in rollouts) for name in names},
        "idle/learner": wait / whole,
        # at lag > 0 actors work ahead: in a step they may have been busy for longer than it took
        "idle/actors": max(0.0, 1.0 - (busy[0] + busy[1]) / (workers * whole)),
        "policy_lag": lag / max(1.0, leases),
    }  # fmt: skip
