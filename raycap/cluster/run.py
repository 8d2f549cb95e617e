"""Run a recipe: its stages in order, what is finished and unchanged reused, what is stale refused or made again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from raycap.cluster.data_stages import (
    asks_for_clip,
    check_sizes,
    clip_stage,
    features_stage,
    missing_clips,
    prepare_stage,
    used_clips,
)
from raycap.cluster.evaluate_stage import evaluate_stage
from raycap.cluster.fitting import Want, amounts, shortage, starts
from raycap.cluster.lineage import check_inputs
from raycap.cluster.resources import as_they_start, idle_workers
from raycap.cluster.signals import stopping_at_signals
from raycap.cluster.stages import FOR_MEMORY, Run, Stage, clip_identity, trained_clips
from raycap.cluster.storage import check_places, refuse_stale, working_in
from raycap.cluster.tasks import connected, nodes
from raycap.cluster.training_stages import mle_continued_stage, mle_stage, scst_stage
from raycap.errors import RecipeError, Stopped
from raycap.models.preflight import check_models
from raycap.recipe import Recipe
from raycap.rewards.contract import check_component
from raycap.train.progress import clock
from raycap.train.stopping import stop_asked


def _dump(recipe: Recipe, *names: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    values = {name: recipe.model_dump(mode="json")[name] for name in names}
    for key in (*FOR_MEMORY, *without):
        section, _, name = key.partition(".")
        values.get(section, {}).pop(name, None)
    return values


_LABELS = ("num_labeled", "labeled_fraction")
_RESOURCES = ("workers", "num_cpus", "num_gpus")  # of a reward pool: where it runs, not what it says


def _prepare_values(recipe: Recipe) -> dict[str, Any]:
    without = [f"data.{name}" for name in _LABELS]
    if recipe.data.format == "scenes":
        without.append("data.root")  # RAYCAP_DATA may be set for other runs
    else:
        without.append("data.scenes")
    return _dump(recipe, "data", without=tuple(without))


def _clip_values(recipe: Recipe) -> dict[str, Any]:
    return {role: clip_identity(recipe, role) for role in trained_clips(recipe)}


def reward_clip(recipe: Recipe) -> dict[str, Any]:
    """What the CLIP that rewards is, for stages that look through it: another judge makes none of them stale."""
    return {"clip.reward": clip_identity(recipe, "reward")}


def _features_values(recipe: Recipe) -> dict[str, Any]:
    values = _dump(recipe, "features")
    return values | reward_clip(recipe) if recipe.features.encoder == "clip.reward" else values


def _precision(recipe: Recipe) -> dict[str, Any]:
    """The only value of `cluster` that numbers hang on."""
    return {"cluster": {"precision": recipe.cluster.precision}}


def _mle_values(recipe: Recipe) -> dict[str, Any]:
    labels = {name: getattr(recipe.data, name) for name in _LABELS}
    unused = () if recipe.captioner.lm_tuning == "lora" else ("captioner.lora",)
    return {**_dump(recipe, "captioner", "mle", without=unused), "data": labels, **_precision(recipe)}


def _scst_values(recipe: Recipe) -> dict[str, Any]:
    # how many checkpoints are kept, and when it warns, changes no number
    values = _dump(recipe, "scst", "rewards", without=("scst.keep_checkpoints", "scst.watch_looks"))
    for reward in values["rewards"].values():
        for name in _RESOURCES:
            reward.pop(name)
    values |= _precision(recipe)
    return values | reward_clip(recipe) if asks_for_clip(recipe) else values


def _mle_continued_values(recipe: Recipe) -> dict[str, Any]:
    return {**_dump(recipe, "mle_continued"), **_precision(recipe)}


def _evaluate_values(recipe: Recipe) -> dict[str, Any]:
    return {**_dump(recipe, "evaluate"), "seeds": recipe.run_seeds, "clip.judge": clip_identity(recipe, "judge")}


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", True, (), _prepare_values, prepare_stage),
        Stage("clip", True, ("prepare",), _clip_values, clip_stage),
        Stage("features", True, ("prepare",), _features_values, features_stage),
        Stage("mle", False, ("features",), _mle_values, mle_stage, stops=True),
        Stage("scst", False, ("mle",), _scst_values, scst_stage, stops=True),
        Stage("mle_continued", False, ("mle", "scst"), _mle_continued_values, mle_continued_stage, stops=True),
        Stage("evaluate", True, ("mle", "scst", "mle_continued"), _evaluate_values, evaluate_stage),
    )
}  # fmt: skip


def run_recipe(recipe: Recipe) -> Run:
    """Do whatever stage is missing.

    Raises:
        RecipeError: storage or data root are not usable; StaleStage: something finished would have to be made again;
        DataError; WorkFailed from a stage.
    """
    check_places(recipe)
    run = Run(recipe, STAGES)
    todo = [
        (name, seed)
        for name in recipe.stages
        for seed in (recipe.run_seeds[:1] if STAGES[name].shared else recipe.run_seeds)
    ]
    print(f"{recipe.name}: {run.folder}", flush=True)
    check_models(recipe)
    with working_in(run.folder), connected():
        check_rewards(recipe)
        check_inputs(run)
        if recipe.rerun != "stale":
            refuse_stale([run.stage_folder(name, seed) for name, seed in todo])
        check_room(run)
        if todo[0][0] == "prepare":
            _run_stage(run, *todo.pop(0))
        if todo:
            check_sizes(run)
        for name, seed in todo:
            _run_stage(run, name, seed)
    return run


def check_rewards(recipe: Recipe) -> None:
    """A component that is misspelt or takes no such option is refused now, and not after hours of MLE."""
    if "scst" in recipe.stages:
        for name, reward in recipe.rewards.items():
            check_component(name, reward.options, reward.source)


def check_room(run: Run) -> None:
    """What a missing stage wants at one time and the cluster does not have is refused before anything runs; where nodes
    may still come (`cluster.autoscaling`) it is said. So is what can only find its place with luck, and who would have
    nothing to do.

    Raises:
        RecipeError: it does not fit, or not in the order in which it starts.
    """
    recipe = run.recipe
    for stage in (stage for stage in ("scst", "mle", "mle_continued") if _is_missing(run, stage)):
        wants = run.wants(stage)
        short = shortage(nodes(), wants) or _left_over(as_they_start(wants))
        if short and not recipe.cluster.autoscaling:
            raise RecipeError(short, key="stages", value=stage, remedy=_ROOM)
        if short:
            print(f"{stage}: {short}; cluster.autoscaling is set, so it begins with what there is room for and waits "
                  "for more nodes", flush=True)  # fmt: skip
        if stage == "scst" and (idle := idle_workers(recipe)):
            print(f"warning: {idle}", flush=True)


def _left_over(wants: Sequence[Want]) -> str:
    """Whom Ray leaves without a place though there would be one for all, in words; that it may, is said."""
    parts = ", ".join(f"{w.role} {w.count} x ({amounts(w.bundle)})" for w in wants if w.bundle)
    why = "Ray places one after another, each where it fits best and not where it leaves room for the next"
    found = starts(nodes(), wants)
    if found == "never":
        return f"there is a place for all, but {why}: the last of {parts} would wait for ever"
    if found == "some":
        print(f"warning: {why}: some of {parts} may find no place; with equal GPUs all do", flush=True)
    return ""


def _is_missing(run: Run, stage: str) -> bool:
    """Whether a stage of the recipe is still to be done, for some seed."""
    if stage not in run.recipe.stages:
        return False
    folders = [run.stage_folder(stage, seed) for seed in run.recipe.run_seeds]
    return any(folder.finished is None or folder.changes() for folder in folders)


_ROOM = (
    "lower cluster.rollout_workers, rewards.<name>.workers or what cluster.* and rewards.*.num_* ask for; give shares, "
    "such as cluster.rollout_gpus=0.5; where nodes are still to come, cluster.autoscaling=true"
)


def _run_stage(run: Run, name: str, seed: int) -> None:
    if name == "clip" and not used_clips(run.recipe):
        return
    folder = run.stage_folder(name, seed)
    if not folder.open(run.recipe) and not (name == "clip" and missing_clips(run)):
        print(f"{folder.label:<14}  finished before, reused", flush=True)
        return
    started = time.perf_counter()
    stops, path = STAGES[name].stops, run.path(name, seed)
    with stopping_at_signals(path) if stops else nullcontext():
        results = STAGES[name].run(run, seed)
        why = stop_asked(path) if stops else ""  # in its last step: there was nothing left to stop
    wall = time.perf_counter() - started
    folder.finish({**results, "wall_seconds": wall})
    print(f"{folder.label:<14}  finished in {clock(wall)}", flush=True)
    if why:
        raise Stopped(f"stopped after {folder.label}, which is finished: {why}",
                      remedy="the same command goes on with what comes next")  # fmt: skip
