"""A finished run in small, as the stages leave it: random weights, real formats, real folders. No Ray, no training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from raycap.cluster.stages import Run, Stage
from raycap.data.scenes.dataset import draw_scenes
from raycap.models.build import new_captioner
from raycap.models.checkpoint import save_captioner
from raycap.models.clip import fill_clip, new_clip
from raycap.models.encoders import build_encoder
from raycap.recipe import Recipe, load_recipe

_LM = "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 48, initializer_range: 0.6}"
_CAPTIONS = {
    "a": ("a red square and a blue ring on a wooden floor", "two shapes"),
    "b": ("three yellow stars in the night sky", "there is a pink heart above a green oval"),
}
_STAGES = {name: Stage(name, name == "clip", (), lambda recipe: {}, lambda run, seed: {}) for name in ("clip", "scst")}


@dataclass(frozen=True)
class TinyRun:
    """STORAGE/tiny with the stages `clip` and `scst` (best, one step, a log), and a data set of drawn scenes.

    Attributes:
        stage: folder of `scst`, what `--checkpoint` takes.
        scenes: folder of the data set: 4 train, 2 dev and 7 test pictures.
    """

    recipe: Recipe
    folder: Path
    stage: Path
    scenes: Path

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.scenes / "images").glob("test_*.png"))


def make_run(storage: Path, overrides: Sequence[str] = ()) -> TinyRun:
    """Write a run below `storage`.

    Args:
        overrides: of the recipe, `key=value`.
    """
    recipe = load_recipe(
        "scenes",
        [
            "name=tiny", f"storage={storage}", f"captioner.lm_config={_LM}", "captioner.max_length=9",
            "captioner.mapping=grid", "features={encoder: clip.reward, kind: grid, grid_size: 2}",
            "clip.reward={model: raycap-scenes-reward, seed: 1}", "clip.judge={model: raycap-scenes-judge, seed: 2}",
            "evaluate={batch_size: 3, beam_size: 3, metrics: [bleu, rouge, cider, clipscore]}", *overrides,
        ],
        {},
    )  # fmt: skip
    run = Run(recipe, _STAGES)
    for role in ("reward", "judge"):
        folder, model = run.path("clip", 0) / role, getattr(recipe.clip, role)
        if model is None or model.pretrained != "train":
            continue
        folder.mkdir(parents=True)
        torch.manual_seed(model.seed)
        fill_clip(folder, new_clip(model.model, model.prompt), {"trained_on": recipe.name})
    encoder = build_encoder(recipe.features, recipe.clip.reward, run.trained_clip("reward"))
    draw_scenes(storage / "scenes", num_train=4, num_dev=2, num_test=7)
    shape = encoder([Image.new("RGB", (64, 64))]).shape[1:]
    captioner = new_captioner(recipe.captioner, shape, _CAPTIONS, seed=0)
    stage = run.path("scst", 0)
    about = {**run.about("scst", 0), "step": 7}
    save_captioner(stage / "best", captioner, about)
    save_captioner(stage / "checkpoints" / "step-000007", captioner, about)
    (stage / "stage.json").write_text("{}")
    records = [{"step": step, "total_steps": 7, "reward/cider/sampled": 0.1 * step} for step in range(1, 8)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (stage / "log.jsonl").write_text(lines + '{"step": 8, "rewa')  # as if it were still being written
    return TinyRun(recipe, run.folder, stage, storage / "scenes")
