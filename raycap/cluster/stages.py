"""The stages of a run: what each is made from, and the function that does it.

A stage's function takes a `Run` and a seed and returns what goes into `finished.json`. Everything that runs long goes
to Ray; this module only says what, from where, to where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from raycap.cluster.fitting import Want
from raycap.cluster.resources import gpus_of, wants_of
from raycap.cluster.storage import (
    StageFolder,
    data_root,
    fingerprint,
    run_folder,
    stored_fingerprint,
    stored_made_from,
)
from raycap.cluster.tasks import nodes
from raycap.data.dataset import PreparedDataset
from raycap.data.scenes.dataset import VERSION
from raycap.data.source import describe_source
from raycap.errors import RecipeError
from raycap.models.clip import clip_digest, shipped_config
from raycap.recipe import Recipe, Section

CLIPS = ("reward", "judge")


@dataclass(frozen=True)
class Stage:
    """A stage's place in the house.

    Attributes:
        shared: made once for all seeds.
        inputs: stages whose results it reads, where the recipe has them.
        values: the recipe values that its result hangs on.
        run: does it.
        stops: it can be asked to write a checkpoint and end.
    """

    name: str
    shared: bool
    inputs: tuple[str, ...]
    values: Callable[[Recipe], Mapping[str, Any]]
    run: Callable[[Run, int], dict[str, Any]]
    stops: bool = False


class Run:
    """One recipe's run in its storage: folders, inputs and devices of its stages."""

    def __init__(self, recipe: Recipe, stages: Mapping[str, Stage]) -> None:
        self.recipe, self.stages = recipe, stages
        self.folder = run_folder(recipe)

    def path(self, stage: str, seed: int) -> Path:
        """Folder of a stage; with several seeds what hangs on the seed has a folder each."""
        if self.stages[stage].shared or not self.recipe.seeds:
            return self.folder / stage
        return self.folder / f"seed-{seed}" / stage

    def stage_folder(self, name: str, seed: int) -> StageFolder:
        """A stage with everything that it is made from, inputs' fingerprints included."""
        stage = self.stages[name]
        inputs = {i: found for i in stage.inputs if (found := self._input(i, seed)) is not None}
        made_from: dict[str, Any] = {"values": dict(stage.values(self.recipe)), "inputs": inputs}
        if name == "prepare" and self.source:
            made_from["source"] = self.source
        if not stage.shared:
            made_from["seed"] = seed
        path = self.path(name, seed)
        made_from = _as_stored(stored_made_from(path), made_from)
        return StageFolder(path, str(path.relative_to(self.folder)), made_from)

    def _input(self, name: str, seed: int) -> str | None:
        """Fingerprint of an input: of what the recipe would make of it, or of what an earlier job left there."""
        if name in self.recipe.stages:
            return self.stage_folder(name, seed).fingerprint
        return stored_fingerprint(self.path(name, seed))

    def has(self, stage: str) -> bool:
        """Whether the stage is one of the recipe's, or was finished by an earlier job from what is here now."""
        return stage in self.recipe.stages or (
            self.is_finished(stage) and all(self._is_current(stage, seed) for seed in self.recipe.run_seeds)
        )

    def is_finished(self, stage: str) -> bool:
        """Whether the stage lies here finished, for every seed."""
        return all(stored_fingerprint(self.path(stage, seed)) is not None for seed in self.recipe.run_seeds)

    def _is_current(self, stage: str, seed: int) -> bool:
        """Whether the inputs that a finished stage was made from are those that are here, or will be made."""
        made_from = stored_made_from(self.path(stage, seed)).get("inputs", {})
        return all(made_from.get(i) == self._input(i, seed) for i in self.stages[stage].inputs)

    def stored_values(self, stage: str, seed: int) -> dict[str, Any]:
        """The recipe values that the stage which lies here was made with; {} where none does."""
        return dict(stored_made_from(self.path(stage, seed)).get("values", {}))

    @cached_property
    def source(self) -> dict[str, str]:
        """What lies in the data set's folder now; of scenes, which version of the drawing makes them."""
        if self.recipe.data.format == "scenes":
            return {"scenes": str(VERSION)}
        if not self.recipe.data.root:
            return {}
        return describe_source(data_root(self.recipe), without=self.folder.parent)

    def results(self, stage: str, seed: int) -> dict[str, Any]:
        """What a finished stage left."""
        found = self.stage_folder(stage, seed).finished
        if found is None:
            raise RecipeError("is needed first", key="stages", value=stage, remedy=f"add {stage} to the run's stages")
        return found

    @property
    def device(self) -> str:
        """Where models run: `auto` takes GPUs where the cluster has any, whatever the driver's own node has."""
        if self.recipe.device != "auto":
            return self.recipe.device
        import ray

        found = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else torch.cuda.is_available()
        return "cuda" if found else "cpu"

    def gpus(self, role: str, *, alone: bool = False) -> float:
        """GPUs of one process of a role (learner, rollout, or a reward component's name); see `gpus_of`.

        Args:
            alone: nothing else runs beside it (the learner in MLE).
        """
        if self.device == "cpu":
            return 0.0
        return gpus_of(role, self.recipe, nodes(), alone=alone)

    def wants(self, stage: str) -> list[Want]:
        """What a stage that trains wants of the cluster at one time."""
        return wants_of(stage, self.recipe, lambda role: self.gpus(role, alone=stage != "scst"))

    def device_of(self, role: str, *, alone: bool = False) -> str:
        """Where a role's model runs: on a GPU when it has a share of one."""
        return "cuda" if self.gpus(role, alone=alone) else "cpu"

    @cached_property
    def dataset(self) -> PreparedDataset:
        """What the stage `prepare` made; opened once, when it is first asked for."""
        return PreparedDataset.open(self.path("prepare", 0))

    def trained_clip(self, role: str) -> Path | None:
        """Folder of a CLIP that was trained in this run."""
        model = getattr(self.recipe.clip, role)
        return self.path("clip", 0) / role if model is not None and model.pretrained == "train" else None

    def labelled_ids(self, dataset: PreparedDataset) -> list[str]:
        """Images whose captions the captioner of this run may read."""
        data = self.recipe.data
        return dataset.labelled_ids(num_labeled=data.num_labeled, labeled_fraction=data.labeled_fraction)

    def select_references(self, dataset: PreparedDataset) -> dict[str, tuple[str, ...]]:
        """References of the images that choose checkpoints."""
        data, limit = self.recipe.data, None
        if data.num_labeled is not None or data.labeled_fraction is not None:
            limit = len(self.labelled_ids(dataset))
        return {image_id: dataset.references(image_id) for image_id in dataset.select_ids(limit)}

    def about(self, stage: str, seed: int) -> dict[str, Any]:
        """Goes into every captioner of the run: where it comes from and what turns a photograph into its features."""
        clips = {role: path for role in CLIPS if (path := self.trained_clip(role)) and path.exists()}
        recipe = self.recipe.model_dump(mode="json")
        for made, section in (("prepare", "data"), ("mle", "mle")):
            if made not in self.recipe.stages:  # what this job's recipe says of it is not how it was made
                recipe[section] |= self.stored_values(made, seed).get(section, {})
        return {
            "run": self.recipe.name,
            "stage": stage,
            "seed": seed,
            "clips": {role: str(path) for role, path in clips.items()},
            "clip_digests": {role: clip_digest(path) for role, path in clips.items()},
            "recipe": recipe,
        }


FOR_MEMORY = ("features.batch_size", "mle.micro_batch", "scst.micro_batch")
"""Values that are lowered where memory is short, in the middle of hours of work: no stage is made from them. An older
raycap wrote them down. (Of an MLE with dropout they change which numbers it draws, as the number of ranks does.)"""

_UNRECORDED_SOURCE = {"scenes": "2"}
"""What drew the scenes of a raycap that did not yet record it."""


def _as_stored(stored: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`stored`, where all that `now` has more are recipe fields at their defaults: a newer raycap knows more of them,
    and what an older one made is as good as before."""
    known = {**stored, "values": dict(stored.get("values", {}))}
    if "scenes" in now.get("source", {}):
        known.setdefault("source", _UNRECORDED_SOURCE)
    for key in FOR_MEMORY:
        section, _, name = key.partition(".")
        if isinstance(before := known["values"].get(section), Mapping):
            known["values"][section] = {n: value for n, value in before.items() if n != name}
    for section, values in now["values"].items():
        if isinstance(values, Mapping) and isinstance(before := known["values"].get(section, {}), Mapping):
            added = {n: value for n, value in _defaults(section).items() if n in values and n not in before}
            if added:
                known["values"][section] = {**before, **added}
    return stored if stored and fingerprint(known) == fingerprint(now) else now


def _defaults(section: str) -> dict[str, Any]:
    """Defaults of a recipe section's fields; {} where there is no such section."""
    field = Recipe.model_fields.get(section)
    default = field.get_default(call_default_factory=True) if field else None
    return default.model_dump(mode="json") if isinstance(default, Section) else {}


def trained_clips(recipe: Recipe) -> Sequence[str]:
    """Roles of the CLIPs that the stage `clip` trains."""
    models = {role: getattr(recipe.clip, role) for role in CLIPS}
    return [role for role, model in models.items() if model is not None and model.pretrained == "train"]


def clip_identity(recipe: Recipe, role: str) -> dict[str, Any] | None:
    """Everything that a CLIP hangs on beside the data: its model, where its weights come from, how it is trained."""
    model = getattr(recipe.clip, role)
    if model is None:
        return None
    # a name of ours may mean another model in another version of raycap
    identity = {**model.model_dump(mode="json"), "config": shipped_config(model.model)}
    if model.pretrained == "train":
        identity["train"] = recipe.clip.train.model_dump(mode="json")
    return identity
