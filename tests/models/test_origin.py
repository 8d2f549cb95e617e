"""Where a checkpoint comes from: told by itself, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycap.errors import CheckpointError
from raycap.models.checkpoint import save_captioner
from raycap.models.origin import file_values, read_origin, with_values
from raycap.models.tokenizer import WordTokenizer
from raycap.recipe import load_recipe


@pytest.fixture
def save(tmp_path: Path, make_captioner: Any):
    """save(about) writes a checkpoint and returns its stage's folder."""

    def write(about: dict[str, Any]) -> Path:
        save_captioner(tmp_path / "run" / "mle" / "best", make_captioner(tokenizer=WordTokenizer(["dog"])), about)
        return tmp_path / "run" / "mle"

    return write


def test_a_checkpoint_without_a_recipe_is_refused(save) -> None:
    with pytest.raises(CheckpointError, match="does not say the recipe"):
        read_origin(save({"step": 3}))


def test_a_recipe_of_another_version_is_named(save) -> None:
    values = load_recipe("scenes", [], {}).model_dump(mode="json")
    values["scst"]["charm"] = 3
    with pytest.raises(CheckpointError, match=r"does not fit this version.*scst\.charm.*the version that wrote it"):
        read_origin(save({"recipe": values}))


def test_names(save) -> None:
    recipe = load_recipe("scenes", ["name=first"], {}).model_dump(mode="json")
    assert read_origin(save({"recipe": recipe})).name == "first/captioner"
    told = {"recipe": recipe, "run": "second", "stage": "mle", "seed": 0, "step": 12}
    assert read_origin(save(told)).name == "second/mle, seed 0, step 12"


def test_trained_clips(save, tmp_path: Path) -> None:
    recipe = load_recipe("scenes", [], {}).model_dump(mode="json")
    stage = save({"recipe": recipe, "clips": {"reward": str(tmp_path / "gone")}})
    assert read_origin(stage).trained_clip("reward") == tmp_path / "gone"  # named, so that an error can name it
    assert read_origin(stage).trained_clip("judge") is None
    for role in ("reward", "judge"):
        (tmp_path / "run" / "clip" / role).mkdir(parents=True)
        (tmp_path / "run" / "clip" / role / "clip.json").write_text("{}")
    found = read_origin(stage)
    assert [found.trained_clip(role) for role in ("reward", "judge")] == [
        tmp_path / "run" / "clip" / "reward", tmp_path / "run" / "clip" / "judge",
    ]  # fmt: skip
    pretrained = load_recipe("scenes", ["clip.judge={model: ViT-B-32, pretrained: openai}"], {})
    assert read_origin(save({"recipe": pretrained.model_dump(mode="json")})).trained_clip("judge") is None


def test_the_clip_beside_a_copied_run_wins_over_the_one_it_was_copied_from(save, tmp_path: Path) -> None:
    recipe = load_recipe("scenes", [], {}).model_dump(mode="json")
    there, here = tmp_path / "elsewhere" / "clip" / "judge", tmp_path / "run" / "clip" / "judge"
    for place, digest in ((there, "trained again"), (here, "as it was")):
        place.mkdir(parents=True)
        (place / "clip.json").write_text(json.dumps({"digest": digest}))
    told = {"recipe": recipe, "clips": {"judge": str(there)}, "clip_digests": {"judge": "as it was"}}
    assert read_origin(save(told)).trained_clip("judge") == here
    (here / "clip.json").unlink()
    with pytest.raises(CheckpointError, match=r"not the clip\.judge of this checkpoint.*trained again"):
        read_origin(save(told)).trained_clip("judge")


def test_files_that_a_recipe_names() -> None:
    recipe = load_recipe("scenes", ["features.weights=a.pth", "clip.judge={model: x, pretrained: b.pt}"], {})
    assert file_values(recipe) == {"features.weights": "a.pth", "clip.judge.pretrained": "b.pt"}
    assert file_values(load_recipe("flickr8k", [], {})) == {}
    changed = with_values(recipe, {"features.weights": "c.pth", "storage": None})
    assert changed.features.weights == "c.pth"
    assert changed.clip == recipe.clip
