"""The learner's half of SCST on Ray: take a step's rollouts from the Exchange, learn, publish.

The body is that of `raycap.train.scst`; what differs is where rollouts come from and where weights go.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raycap.cluster.accounting import set_aside
from raycap.cluster.reaching import answer, away, reached
from raycap.cluster.tasks import on
from raycap.cluster.train_job import rank_journal, training_group
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.errors import RaycapError, WorkFailed
from raycap.models.checkpoint import load_captioner
from raycap.models.recompute import recompute_blocks
from raycap.recipe import Recipe
from raycap.rewards.mix import Mix
from raycap.train.group import Group, built_together, of_first, together
from raycap.train.journal import Journal
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.prompts import PromptSchedule
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
            select_references; about; prepared (path) and labelled (image ids) for `scst.mle_weight`. The run's prompts
            lie in its folder, for the Exchange and for its check here.
    """
    recipe: Recipe = config["recipe"]
    exchange = config["exchange"]
    group = training_group(recipe.cluster, config["device"])
    journal = rank_journal(
        config["folder"], group, keep=recipe.scst.keep_checkpoints, about=config["about"], logging=recipe.logging,
        watched=config.get("watched", False), closing=config.get("closing"),
    )  # fmt: skip
    schedule = _schedule(config)
    learner, steering, seconds = built_together(group, lambda: _set_up(config, journal, group))
    validator = Validator(config["select_references"], learner.features, max_length=recipe.captioner.max_length)
    same_step(group, learner.step)
    learner.standing.collect(state=True)
    turns = learner.turns(shared=recipe.cluster.collocated)
    started = time.perf_counter()
    error: RaycapError | None = None
    known = False  # by the Exchange: it has this learner's weights
    if group.rank == 0:
        learner.incarnation = next_incarnation(Path(config["folder"]))
        try:
            reached(lambda: exchange.reset.remote(learner.incarnation, learner.step))
            known = _publish(exchange, learner)
            if learner.step == 0 and not steering.has_looked:
                first_look(learner, validator, steering, journal)
        except RaycapError as raised:
            error = raised
    learner.incarnation = _of_rank_0(learner.incarnation, group)
    elapsed = seconds

    def save_here() -> None:
        learner.standing.collect(state=True)
        save(learner, steering, journal, elapsed)

    def stop_where_asked() -> None:
        """Between two steps, and while one is waited for."""
        journal.save_if_asked(learner.step, save_here)
        why = journal.stop_asked() if group.rank == 0 else ""
        stop_if_asked(group, why, learner.step, save_here)

    while learner.step < recipe.scst.steps:
        known = bool(_of_rank_0(known, group))
        queue = _queue(exchange, group)
        marks = [time.perf_counter()]
        turns.rest()
        rollouts = _take(exchange, learner, group, config, error, known, stop_where_asked)
        marks.append(time.perf_counter())
        aside = set_aside(schedule, learner.step, rollouts, group)
        turns.wake()
        values = learner.update(rollouts)
        turns.rest()  # others have theirs as soon as these weights are out
        marks.append(time.perf_counter())
        if group.rank == 0:
            try:
                known = _publish(exchange, learner)
            except RaycapError as raised:  # told to all ranks at the next take
                error = raised
        marks.append(time.perf_counter())
        values |= queue | _health(rollouts, learner.step - 1, marks, recipe.cluster.rollout_workers, group)
        if learner.published is not None:
            values["published_bytes"] = learner.published.nbytes
        if aside:
            values["set_aside"] = aside
        elapsed = seconds + time.perf_counter() - started
        if group.rank == 0:
            try:
                finish_step(learner, values, validator, steering, journal, elapsed)
            except RaycapError as raised:
                error = raised
        if learner.step < recipe.scst.steps:
            together(group, error)  # before anybody stops for another reason
            stop_where_asked()
    together(group, error)  # the last look's
    seconds += time.perf_counter() - started
    return {**summary(learner, steering.keeper, seconds), "set_aside": steering.set_aside}


def _schedule(config: Mapping[str, Any]) -> PromptSchedule:
    recipe: Recipe = config["recipe"]
    ids = json.loads((Path(config["folder"]) / PROMPTS).read_text())
    sizes = {"batch_size": recipe.scst.batch_size, "lease_size": recipe.scst.lease_size}
    return PromptSchedule(ids, **sizes, seed=config["seed"])


def _set_up(config: dict[str, Any], journal: Journal, group: Group) -> tuple[Learner, Steering, float]:
    """Learner and what watches it, where the last checkpoint left them, and the seconds spent so far."""
    import torch

    recipe: Recipe = config["recipe"]
    features = FeatureStore.open(Path(config["features"]))
    captioner = load_captioner(Path(config["start"])).to(group.starts_on(on(config["device"])))
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
    return int(of_first(group, [number])[0])


def _publish(exchange: Any, learner: Learner) -> bool:
    """Put the weights once; the Exchange passes the reference on. False when it does not know this learner, or is away.

    The reference's owner is this process: when it dies the object dies, and the restarted learner publishes anew.

    Raises:
        RaycapError: what the Exchange found wrong with itself.
    """
    import ray

    learner.published = published = learner.publish(learner.published)  # the one before was copied by `put`
    weights = [ray.put(published)]
    try:
        return bool(answer(lambda: exchange.publish.remote(published.weights_id, weights)))
    except ray.exceptions.RayError as error:
        if away(error):
            return False
        raise _cause(error) from None


def _cause(error: Exception) -> Exception:
    """An actor's own error, where Ray wrapped one."""
    return getattr(error, "cause", None) or error


PROMPTS = "prompts.json"
"""Image ids of the run, in the stage's folder."""
TAKE_S = 2.0
"""How long a rank waits for its rollouts before it looks at what the others do."""


def _take(
    exchange: Any, learner: Learner, group: Group, config: Mapping[str, Any], error: RaycapError | None, known: bool,
    rest: Callable[[], None],
) -> list[Any]:  # fmt: skip
    """This rank's rollouts of a step, once every rank has its own.

    Every few seconds all ranks look at each other: an error of any rank ends all, together; an Exchange that was lost
    is told where the learner stands, and the step is asked for again; nobody sits in a collective for as long as
    another waits.

    Args:
        rest: called at each of these looks, on all ranks.
    """
    timeout_s = config["recipe"].cluster.stall_timeout_s
    mine: list[Any] | None = None
    asked, losses = time.monotonic(), 0
    while True:
        lost = not known
        if error is None and known and mine is None:
            ask = (learner.step, group.rank, group.size, timeout_s, learner.incarnation, TAKE_S)
            try:
                taken = answer(partial(exchange.take.remote, *ask))
            except Exception as raised:
                cause = _cause(raised)
                if isinstance(cause, RaycapError):
                    error = cause
                elif not away(raised):
                    raise
                lost = error is None
            else:
                lost = taken == "unknown"
                mine = taken if isinstance(taken, list) else None
        together(group, error)
        anywhere_lost, waiting = group.sum_values([float(lost), float(mine is None)])
        if anywhere_lost:
            mine = None  # of the Exchange before
            losses += 1
            together(group, _lost_too_often(learner.step, losses, time.monotonic() - asked, timeout_s))
            known = _introduce(exchange, learner, group, config["folder"])
        elif not waiting:
            assert mine is not None
            return mine
        rest()


def _lost_too_often(step: int, times: int, for_s: float, limit_s: float) -> RaycapError | None:
    """An Exchange that is lost again and again sees no stall, because each one is new."""
    if times == 1 or for_s <= limit_s:
        return None
    return WorkFailed(f"step {step} got no further for {for_s:.0f} s, in which the Exchange was lost {times} times",
                      key="cluster.stall_timeout_s", value=limit_s,
                      remedy="look at the Exchange's log: the head may have too little memory")  # fmt: skip


def _introduce(exchange: Any, learner: Learner, group: Group, folder: str) -> bool:
    """To an Exchange that is new: what was out at the old one is dropped, and its step generated again.

    Returns:
        Whether it has the weights now.
    """
    error: RaycapError | None = None
    known = False
    if group.rank == 0:
        print(f"the Exchange was lost; step {learner.step} is generated again", flush=True)
        learner.incarnation = next_incarnation(Path(folder))
        try:
            reached(lambda: exchange.reset.remote(learner.incarnation, learner.step))
            known = _publish(exchange, learner)
        except Exception as raised:  # noqa: BLE001 - whatever Ray calls it, all ranks must hear of it
            cause = _cause(raised)
            error = cause if isinstance(cause, RaycapError) else WorkFailed(
                f"the Exchange did not come back: {raised}"[:500], key="exchange", remedy="run the same command again"
            )  # fmt: skip
    together(group, error)
    learner.incarnation = _of_rank_0(learner.incarnation, group)
    return bool(_of_rank_0(known, group))


def _queue(exchange: Any, group: Group) -> dict[str, int]:
    """How many leases are in each state when the learner asks for its step."""
    import ray

    if group.rank:
        return {}
    try:
        states = answer(lambda: exchange.status.remote())["states"]
    except ray.exceptions.RayError as error:
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
