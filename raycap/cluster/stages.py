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

from raycap.cluster.storage import StageFolder, run_folder
from raycap.data.dataset import PreparedDataset
from raycap.recipe import Recipe

CLIPS = ("reward", "judge")


@dataclass(frozen=True)
class Stage:
    """A stage's place in the house.

    Attributes:
        shared: made once for all seeds.
        inputs: stages whose results it reads, where the recipe has them.
        values: the recipe values that its result hangs on.
        run: does it.
    """

    name: str
    shared: bool
    inputs: tuple[str, ...]
    values: Callable[[Recipe], Mapping[str, Any]]
    run: Callable[[Run, int], dict[str, Any]]


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
        inputs = {i: self.stage_folder(i, seed).fingerprint for i in stage.inputs if i in self.recipe.stages}
        made_from: dict[str, Any] = {"values": dict(stage.values(self.recipe)), "inputs": inputs}
        if not stage.shared:
            made_from["seed"] = seed
        path = self.path(name, seed)
        return StageFolder(path, str(path.relative_to(self.folder)), made_from)

    def results(self, stage: str, seed: int) -> dict[str, Any]:
        """What a finished stage left."""
        found = self.stage_folder(stage, seed).finished
        assert found is not None, f"{stage} is not finished"
        return found

    @property
    def device(self) -> str:
        if self.recipe.device != "auto":
            return self.recipe.device
        return "cuda" if torch.cuda.is_available() else "cpu"

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
        clips = {role: str(path) for role in CLIPS if (path := self.trained_clip(role)) is not None}
        return {
            "run": self.recipe.name,
            "stage": stage,
            "seed": seed,
            "clips": clips,
            "recipe": self.recipe.model_dump(mode="json"),
        }


def trained_clips(recipe: Recipe) -> Sequence[str]:
    """Roles of the CLIPs that the stage `clip` trains."""
    models = {role: getattr(recipe.clip, role) for role in CLIPS}
    return [role for role, model in models.items() if model is not None and model.pretrained == "train"]
