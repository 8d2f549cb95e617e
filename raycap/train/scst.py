"""Self-critical sequence training (Rennie et al. 2017; HAR eq. 2) in one process, top to bottom.

Per step: the step's images in fixed slices (leases); K sampled captions and the greedy one of each image; rewards by
component; advantages; one policy-gradient step. The Ray run (`raycap.cluster`) does the same with actors and equals
this loop bit by bit at lag 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from raycap.data.features import FeatureStore
from raycap.decoding.sample import generate
from raycap.models.precision import copy_in, refresh
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import ClusterRecipe, SCSTRecipe
from raycap.rewards.contract import Component, score_generation
from raycap.rewards.mix import Mix
from raycap.train.group import Alone
from raycap.train.journal import Journal
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.lease_batch import seen_by
from raycap.train.prompts import PromptSchedule
from raycap.train.resuming import load_training_state, training_state
from raycap.train.steering import Steering
from raycap.train.stopping import stop_if_asked
from raycap.train.validation import BestKeeper, Validator
from raycap.types import Generation, Lease, Rollouts


def train_scst(
    captioner: PrefixCaptioner,
    schedule: PromptSchedule,
    features: FeatureStore,
    components: Mapping[str, Component],
    weights: Mapping[str, float] | Mix,
    validator: Validator,
    recipe: SCSTRecipe,
    cluster: ClusterRecipe,
    *,
    max_length: int,
    seed: int,
    journal: Journal,
    precision: torch.dtype = torch.float32,
    rollout_precision: torch.dtype = torch.float32,
    labelled: LabelledSet | None = None,
) -> dict[str, Any]:
    """Train for `recipe.steps` steps from the captioner's present weights.

    Args:
        components: the reward by name; `weights` has the same names.
        precision: of the learner's products; the parameters that learn are float32.
        rollout_precision: of the copy that generates.
        labelled: captions for `recipe.mle_weight`.

    Returns:
        best_cider, best_step, start_cider, steps, seconds.
    """
    learner = Learner(captioner, features, recipe, weights, seed=seed, precision=precision, labelled=labelled)
    steering = Steering(learner.mix, recipe.collapse_share, recipe.watch_looks)
    alone = Alone()
    learner.step, seconds = load_training_state(journal, captioner, learner.optimizer, learner.average, steering, alone)
    started = time.perf_counter()
    actor = copy_in(rollout_precision, captioner)
    if learner.step == 0 and not steering.has_looked:
        torch.set_num_threads(cluster.learner_threads)
        first_look(learner, validator, steering, journal)
    turns = learner.turns(shared=cluster.collocated)
    while learner.step < recipe.steps:
        rollouts = []
        turns.rest()
        torch.set_num_threads(cluster.rollout_threads)
        refresh(actor, captioner)
        for lease in schedule.leases(learner.step):
            generation = generate_lease(actor, features, lease, recipe, max_length=max_length, seed=seed)
            scores = {name: score_generation(name, c, lease.image_ids, generation) for name, c in components.items()}
            rollouts.append(Rollouts(lease, learner.weights_id, generation, scores))
        torch.set_num_threads(cluster.learner_threads)
        turns.wake()
        values = learner.update(rollouts)
        elapsed = seconds + time.perf_counter() - started
        finish_step(learner, values, validator, steering, journal, elapsed)
        if learner.step < recipe.steps:
            stop_if_asked(alone, journal.stop_asked(), learner.step, partial(save, learner, steering, journal, elapsed))
    seconds += time.perf_counter() - started
    return summary(learner, steering.keeper, seconds)


def generate_lease(
    captioner: PrefixCaptioner, features: FeatureStore, lease: Lease, recipe: SCSTRecipe, *, max_length: int, seed: int
) -> Generation:
    """K samples from the whole distribution and the greedy caption of each image of a lease."""
    return generate(
        captioner,
        seen_by(captioner, features, lease, recipe, seed=seed),
        positions=[prompt.position for prompt in lease.prompts],
        num_samples=recipe.num_samples,
        greedy=True,
        max_length=max_length,
        seed=seed,
        step=lease.step,
        temperature=recipe.temperature,
    )


def finish_step(
    learner: Learner,
    values: Mapping[str, Any],
    validator: Validator,
    steering: Steering,
    journal: Journal,
    elapsed: float,
    timed: Callable[[str], AbstractContextManager[None]] = lambda part: nullcontext(),
) -> None:
    """After an update: every `select_every` steps a look at `select` and a checkpoint; a log line in any case.

    Args:
        elapsed: seconds of the stage, for the log.
        timed: is entered for each part: `look`, `log`, `checkpoint`.
    """
    recipe, seen = learner.recipe, {}
    steering.observe(learner.step, values)
    if learner.due:
        with timed("look"):
            seen = look(learner, validator, steering, journal)
    if learner.step == 1 and (warning := far_below_greedy(recipe, values)):
        seen["warning"] = "; ".join(filter(None, [warning, seen.get("warning", "")]))
    with timed("log"):
        journal.log({"step": learner.step, "total_steps": recipe.steps, "seconds": elapsed, **values, **seen})
    if learner.due:
        with timed("checkpoint"):
            save(learner, steering, journal, elapsed)


def save(learner: Learner, steering: Steering, journal: Journal, elapsed: float) -> None:
    """A checkpoint of where the learner stands."""
    journal.save(learner.step, learner.standing.captioner, training_state(learner.standing, steering, elapsed))


FAR_BELOW = 0.6


def far_below_greedy(recipe: SCSTRecipe, values: Mapping[str, Any]) -> str:
    """What to say when the greedy baseline starts where samples score far below it; empty otherwise.

    Nearly every advantage is negative then, and the policy is pushed away from all that it says.
    """
    if recipe.baseline != "greedy":
        return ""
    for key, sampled in values.items():
        name = key.removeprefix("reward/").removesuffix("/sampled")
        if key != f"reward/{name}/sampled":
            continue
        greedy = values[f"reward/{name}/greedy"]
        if greedy > 0 and sampled < FAR_BELOW * greedy:
            return (f"samples score {sampled:.3f} in {name} where greedy captions score {greedy:.3f}: with the greedy "
                    "baseline nearly every advantage is negative and the policy may collapse; "
                    "consider scst.baseline=leave_one_out")  # fmt: skip
    return ""


def first_look(learner: Learner, validator: Validator, steering: Steering, journal: Journal) -> None:
    """What `select` says before the first update: where the curve starts."""
    seen = look(learner, validator, steering, journal)
    journal.log({"step": 0, "total_steps": learner.recipe.steps, "seconds": 0.0, **seen})


def look(learner: Learner, validator: Validator, steering: Steering, journal: Journal) -> dict[str, Any]:
    """Greedy captions of `select` with the averaged weights; the best captioner so far is kept.

    Raises:
        Collapsed: see `BestKeeper.look`.
    """
    with learner.standing.averaged() as captioner:
        figures = validator.figures(captioner)
        best, record = steering.look(learner.step, figures)
        if best:
            journal.save_best(captioner, {"step": learner.step, "select_cider": figures["select_cider"]})
    return record


def summary(learner: Learner, keeper: BestKeeper, seconds: float) -> dict[str, Any]:
    return {
        "best_cider": keeper.best,
        "best_step": keeper.best_step,
        "start_cider": keeper.start,
        "steps": learner.step,
        "seconds": seconds,
    }
