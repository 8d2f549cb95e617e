"""May a job build on what an earlier one left? What it does not name is there, finished, and means what it says."""

from __future__ import annotations

from raycap.cluster.data_stages import asks_for_clip, missing_clips
from raycap.cluster.stages import Run
from raycap.cluster.storage import differences
from raycap.errors import RecipeError
from raycap.metrics.score import BY_CLIP
from raycap.recipe import ClipModelRecipe
from raycap.recipe.sections import same_backbone

_READ_ON = {"features": ("features", "clip.reward"), "mle": ("captioner", "data")}
"""Recipe values of a stage that later stages read again: what captions are written with, and what may be read of them.

The others (how long MLE trained, where the photographs lay) say how it was made, and it is made.
"""


def check_inputs(run: Run) -> None:
    """Refuse a job whose stages need one that it does not name and that is not there, or was made for another recipe.

    Raises:
        RecipeError: which, and what differs.
    """
    for seed in run.recipe.run_seeds:
        for name in _unnamed_inputs(run):
            _check(run, name, seed)
    if "evaluate" in run.recipe.stages and "scst" not in run.recipe.stages:
        for seed in run.recipe.run_seeds:
            _check_judge(run, seed)
    for role in [] if "clip" in run.recipe.stages else _needed_clips(run):
        if role in missing_clips(run):
            raise RecipeError(f"this job needs clip.{role}, which no job has trained here", key="stages",
                              value=run.recipe.stages, remedy=f"add clip, or set clip.{role}=null")  # fmt: skip


def _unnamed_inputs(run: Run) -> list[str]:
    """Stages whose results this job reads and does not make. `evaluate` takes those that there are."""
    wanted: list[str] = [s for s in run.recipe.stages if s != "evaluate"]
    found: list[str] = []
    if "evaluate" in run.recipe.stages:
        wanted += [s for s in run.stages["evaluate"].inputs if s in run.recipe.stages or run.has(s)]
        found = [s for s in wanted if s not in run.recipe.stages]
    while wanted:
        new = [i for i in run.stages[wanted.pop()].inputs if i not in run.recipe.stages and i not in found]
        wanted += new
        found += new
    return found


def _check(run: Run, name: str, seed: int) -> None:
    label = str(run.path(name, seed).relative_to(run.folder))
    if run.stage_folder(name, seed).finished is None:
        raise RecipeError(f"{label} is needed and has not finished", key="stages", value=run.recipe.stages,
                          remedy=f"add {name}: it goes on from its last checkpoint where it has one")  # fmt: skip
    stored, now = run.stored_values(name, seed), dict(run.stages[name].values(run.recipe))
    sections = _READ_ON.get(name, ())
    found = differences({s: stored.get(s) for s in sections}, {s: now.get(s) for s in sections})
    if found:
        raise RecipeError(f"{label} is not among them and was made with other values: {'; '.join(found[:5])}",
                          key="stages", value=run.recipe.stages, remedy=f"set these values as they were, or add {name} "
                          "and rerun=stale")  # fmt: skip


def _check_judge(run: Run, seed: int) -> None:
    """The CLIP that an earlier job rewarded with must not judge what it rewarded."""
    judge, rewarded = run.recipe.clip.judge, run.stored_values("scst", seed).get("clip.reward")
    if judge is None or not rewarded:
        return
    reward = ClipModelRecipe(**{name: rewarded[name] for name in ClipModelRecipe.model_fields if name in rewarded})
    if same_backbone(reward, judge):
        raise RecipeError(f"SCST was rewarded by {reward.model!r}: it must not judge its own work", key="clip.judge",
                          value=judge.model, remedy="judge with another backbone")  # fmt: skip


def _needed_clips(run: Run) -> list[str]:
    """Roles of the CLIPs that the job's own stages look through."""
    recipe = run.recipe
    encodes = "features" in recipe.stages and recipe.features.encoder == "clip.reward"
    rewards = "scst" in recipe.stages and asks_for_clip(recipe)
    judges = "evaluate" in recipe.stages and bool(set(BY_CLIP) & set(recipe.evaluate.metrics))
    return ["reward"] * (encodes or rewards) + ["judge"] * judges
