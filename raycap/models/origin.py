"""Where a captioner comes from, as its checkpoint says: the recipe, the CLIPs trained beside it, the files it names.

That is what turns a photograph into the features it was trained on, so whoever captions from pixels starts here. What
an export took along is named relative to its folder; everything else by absolute path or public name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycap.errors import CheckpointError, RecipeError
from raycap.models.checkpoint import find_captioner, read_about
from raycap.models.clip import ABOUT as CLIP_ABOUT
from raycap.models.clip import clip_digest
from raycap.recipe import Recipe
from raycap.recipe.load import validate

FILE_VALUES = ("features.weights", "clip.reward.pretrained", "clip.judge.pretrained")
"""Recipe values that may be a file of weights."""


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says about itself.

    Attributes:
        folder: of the captioner, absolute.
        about: as it was saved: run, stage, seed, step, clips, recipe ...
        recipe: of its run, files in it resolved.
    """

    folder: Path
    about: Mapping[str, Any]
    recipe: Recipe

    @property
    def stage(self) -> str:
        return str(self.about.get("stage") or "captioner")

    @property
    def name(self) -> str:
        """Such as `scenes/scst, seed 0, step 150`."""
        parts = [f"{key} {self.about[key]}" for key in ("seed", "step") if self.about.get(key) is not None]
        return ", ".join([f"{self.about.get('run') or self.recipe.name}/{self.stage}", *parts])

    def trained_clip(self, role: str) -> Path | None:
        """Folder of `clip.<role>` when it was trained in the run: in an export, in the run's folder around the
        checkpoint (which may have been copied as a whole), or where the checkpoint says. None for a pretrained one,
        and where it is not said.

        Raises:
            CheckpointError: there is one, and it is not the one that the checkpoint was trained or judged with.
        """
        model = getattr(self.recipe.clip, role)
        if model is None or model.pretrained != "train":
            return None
        said = self.about.get("clips", {}).get(role)
        # STORAGE/NAME/[seed-0/]scst/[checkpoints/]best: the run is at most four folders up
        places = [parent / "clip" / role for parent in self.folder.parents[:4]]
        if said:
            places.insert(len(places) if Path(said).is_absolute() else 0, self.folder / said)
        found = [place for place in places if (place / CLIP_ABOUT).is_file()]
        if not found:
            return self.folder / said if said else None
        digest = self.about.get("clip_digests", {}).get(role)
        same = [place for place in found if not digest or clip_digest(place) in (None, digest)]
        if not same:
            raise CheckpointError(f"is not the clip.{role} of this checkpoint: it has been trained again since",
                                  key="clip", value=str(found[0]), remedy="evaluate with the checkpoints that were "
                                  "trained beside it, or an export made before")  # fmt: skip
        return same[0]


def read_origin(checkpoint: Path) -> Origin:
    """What the checkpoint says about itself.

    Args:
        checkpoint: a stage's folder, a checkpoint in it, or an export.

    Raises:
        CheckpointError: none of these; it does not say its recipe, or one that this version cannot read.
    """
    folder = find_captioner(checkpoint).absolute()
    about = read_about(folder)
    values = about.get("recipe")
    if not isinstance(values, Mapping):
        raise CheckpointError("does not say the recipe it was trained with", key="checkpoint", value=str(folder),
                              remedy="take a checkpoint that a raycap run wrote, or an export of one")  # fmt: skip
    try:
        recipe = validate(values)
        anchored = {
            key: str(folder / value) for key, value in file_values(recipe).items() if (folder / value).is_file()
        }
        return Origin(folder, about, with_values(recipe, anchored))
    except RecipeError as error:
        raise CheckpointError(f"its recipe does not fit this version of raycap: {error}", key="checkpoint",
                              value=str(folder), remedy="use the version that wrote it") from error  # fmt: skip


def file_values(recipe: Recipe) -> dict[str, str]:
    """Those of `FILE_VALUES` that are set and may be files, by their dotted keys."""
    found = {}
    for key in FILE_VALUES:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if value and value != "train" and not str(value).startswith("package:"):
            found[key] = str(value)
    return found


def with_values(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values under some dotted keys."""
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return validate(values)
