"""The recipes that the package carries, and the sections' own promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import raycap.recipe
from raycap.recipe import Recipe, Section, list_recipes, load_recipe, to_yaml
from raycap.recipe.load import FOLDER


def sections(model: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section below a model, by its dotted path."""
    found: list[tuple[str, type[BaseModel]]] = [(path, model)]
    for name, field in model.model_fields.items():
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                found += sections(option, f"{path}.{name}".strip("."))
    return found


def test_every_file_is_listed() -> None:
    assert {"scenes", "flickr8k"} <= set(list_recipes())
    assert list_recipes() == sorted(file.stem for file in Path(FOLDER).iterdir())


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_is_valid_complete_and_explains_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, environ={})
    assert recipe.name == name
    assert recipe.storage is None, "where runs lie is the user's to say"
    assert len(recipe.run_seeds) == len(set(recipe.run_seeds)) >= 1
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(str(file), environ={}) == recipe
    order = ["prepare", "clip", "features", "mle", "scst", "mle_continued", "evaluate"]
    assert recipe.stages == sorted(recipe.stages, key=order.index), "a stage comes after what it reads"


@pytest.mark.parametrize("name", list_recipes())
def test_what_a_shipped_recipe_reads_is_made_by_one_of_its_stages(name: str) -> None:
    recipe = load_recipe(name, environ={})
    trained = [clip for clip in (recipe.clip.reward, recipe.clip.judge) if clip and clip.pretrained == "train"]
    assert bool(trained) == ("clip" in recipe.stages)
    if "scst" in recipe.stages:
        assert {"prepare", "features", "mle"} <= set(recipe.stages)


def test_photos_keep_no_split_from_training_that_they_do_not_report_on() -> None:
    """Of a folder without splits, a tenth is test, a tenth of the rest `select`: an unused dev would be lost."""
    recipe = load_recipe("photos", environ={})
    assert set(recipe.data.splits) == {"train", recipe.evaluate.split}


ALL = sections(Recipe)


def test_the_walk_finds_the_sections() -> None:
    paths = [path for path, _ in ALL]
    for path in ("", "scst", "clip.reward", "clip.judge", "captioner.vocabulary", "rewards", "data.scenes"):
        assert path in paths


@pytest.mark.parametrize(("path", "model"), ALL, ids=[path or "recipe" for path, _ in ALL])
def test_every_field_says_what_it_means(path: str, model: type[BaseModel]) -> None:
    silent = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
    assert silent == []
    broken = [name for name, field in model.model_fields.items() if "\n" in str(field.description)]
    assert broken == [], "a meaning stands on the line of its value"


@pytest.mark.parametrize(("path", "model"), ALL, ids=[path or "recipe" for path, _ in ALL])
def test_every_section_refuses_unknown_keys_and_changes(path: str, model: type[BaseModel]) -> None:
    assert issubclass(model, Section)
    config: Any = model.model_config
    assert (config["extra"], config["frozen"]) == ("forbid", True)


def test_every_section_is_public() -> None:
    for _, model in ALL:
        assert getattr(raycap.recipe, model.__name__) is model
    assert sorted(raycap.recipe.__all__) == sorted(
        {model.__name__ for _, model in ALL} | {"Section", "GridWindow", "list_recipes", "load_recipe", "to_yaml"}
    )
