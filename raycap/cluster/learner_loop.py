"""The learner's half of SCST on Ray: take a step's rollouts from the Exchange, learn, publish.

The body is that of `raycap.train.scst`; what differs is where rollouts come from and where weights go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raycap.cluster.accounting import set_aside
from raycap.cluster.exchange_link import ExchangeLink
from raycap.cluster.step_seconds import step_seconds
from raycap.cluster.tasks import on
from raycap.cluster.train_job import rank_journal, training_group
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.models.checkpoint import load_captioner
from raycap.models.recompute import recompute_blocks
from raycap.recipe import Recipe
from raycap.rewards.mix import Mix
from raycap.train.group import Group, built_together, first_does
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.prompts import PromptSchedule
from raycap.train.resuming import load_training_state
from raycap.train.scst import finish_step, first_look, save, summary
from raycap.train.steering import Steering
from raycap.train.stopping import stop_if_asked
from raycap.train.stopwatch import Stopwatch
from raycap.train.validation import Validator

PROMPTS = "prompts.json"
"""Image ids of the run, in the stage's folder."""


def scst_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every rank of a Ray Train job.

    Args:
        config: exchange (handle), recipe, seed, device, precision; start, features, folder (paths as strings);
            select_references; about; prepared (path) and labelled (image ids) for `scst.mle_weight`. The run's prompts
            lie in its folder, for the Exchange and for its check here.
    """
    recipe: Recipe = config["recipe"]
    folder = Path(config["folder"])
    group = training_group(recipe.cluster, config["device"])
    journal = rank_journal(
        config["folder"], group, keep=recipe.scst.keep_checkpoints, about=config["about"], logging=recipe.logging,
        watched=config.get("watched", False), closing=config.get("closing"),
    )  # fmt: skip
    schedule = _schedule(config, folder)
    learner, steering = built_together(group, lambda: _set_up(config, group))
    learner.step, seconds = load_training_state(
        journal, learner.captioner, learner.optimizer, learner.average, steering, group
    )
    learner.standing.collect(state=True)
    validator = Validator(config["select_references"], learner.features, max_length=recipe.captioner.max_length)
    turns = learner.turns(shared=recipe.cluster.collocated)
    started, elapsed = time.perf_counter(), seconds
    link = ExchangeLink(config["exchange"], learner, group, folder, recipe.cluster.stall_timeout_s)
    link.open()
    if learner.step == 0 and not steering.has_looked:
        first_does(group, lambda: first_look(learner, validator, steering, journal))

    def save_here() -> None:
        learner.standing.collect(state=True)
        save(learner, steering, journal, elapsed)

    def stop_where_asked() -> None:
        """Between two steps, and while one is waited for."""
        journal.save_if_asked(learner.step, save_here)
        why = journal.stop_asked() if group.rank == 0 else ""
        stop_if_asked(group, why, learner.step, save_here)

    watch = Stopwatch()
    while learner.step < recipe.scst.steps:
        queue = link.queue()
        turns.rest()
        with watch.of("wait"):
            part = link.take(stop_where_asked)
        aside = set_aside(schedule, learner.step, part, group)
        turns.wake()
        with watch.of("learn"):
            values = learner.update(part.rollouts)
        turns.rest()  # others have theirs as soon as these weights are out
        with watch.of("publish"):
            link.publish()
        workers = queue.pop("workers", None)
        values |= queue | step_seconds(part.rollouts, learner.step - 1, watch.lap(), recipe, group, workers=workers)
        if learner.published is not None:
            values["published_bytes"] = learner.published.nbytes
        if aside:
            values["set_aside"] = aside
        elapsed = seconds + time.perf_counter() - started
        first_does(group, partial(finish_step, learner, values, validator, steering, journal, elapsed, watch.of))
        if learner.step < recipe.scst.steps:
            stop_where_asked()
    seconds += time.perf_counter() - started
    return {**summary(learner, steering.keeper, seconds), "set_aside": steering.set_aside}


def _schedule(config: Mapping[str, Any], folder: Path) -> PromptSchedule:
    recipe: Recipe = config["recipe"]
    ids = json.loads((folder / PROMPTS).read_text())
    sizes = {"batch_size": recipe.scst.batch_size, "lease_size": recipe.scst.lease_size}
    return PromptSchedule(ids, **sizes, seed=config["seed"])


def _set_up(config: dict[str, Any], group: Group) -> tuple[Learner, Steering]:
    """Learner and what watches it, before anything is learned."""
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
    return learner, Steering(mix, recipe.scst.collapse_share, recipe.scst.watch_looks)
