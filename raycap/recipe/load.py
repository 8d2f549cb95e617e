"""Recipe files and `key=value` overrides, both through the same typed models; the resolved recipe as YAML."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raycap.errors import RecipeError
from raycap.recipe.whole import Recipe

FOLDER = Path(__file__).parent.parent / "recipes"


def list_recipes() -> list[str]:
    """Names of the recipes that the package carries."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Recipe:
    """Resolve a recipe.

    Args:
        name_or_file: a carried recipe's name, or a YAML file.
        overrides: `key=value`, dotted keys, values as YAML; they win over the file.
        environ: RAYCAP_STORAGE and RAYCAP_DATA stand in for `storage` and `data.root` where nothing else sets them.

    Raises:
        RecipeError: no such recipe, an unknown key, a value of the wrong type or out of range.
    """
    values = _read(name_or_file)
    values.setdefault(
        "rewards", {"cider": {}}
    )  # `rewards.clip.weight=0.1` adds to it; `rewards={clip: {}}` replaces it
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError("expected key=value", key="override", value=item, remedy="for example scst.steps=100")
        _put(values, key.strip(), _parse(key, text))
    environ = os.environ if environ is None else environ
    for variable, path in (("RAYCAP_STORAGE", ("storage",)), ("RAYCAP_DATA", ("data", "root"))):
        if environ.get(variable):
            section = values
            for part in path[:-1]:
                section = section.setdefault(part, {})
            if section.get(path[-1]) is None:
                section[path[-1]] = environ[variable]
    return validate(values)


def validate(values: Mapping[str, Any]) -> Recipe:
    """Typed recipe from plain values; the first fault is reported with its key, value and remedy."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise RecipeError("no such key", key=key, value=fault["input"], remedy=_suggest(fault["loc"])) from None
        message = fault["msg"].removeprefix("Value error, ")
        if not key:
            raise RecipeError(message) from None
        raise RecipeError(message, key=key, value=fault["input"]) from None


def to_yaml(recipe: BaseModel) -> str:
    """The resolved recipe as YAML with every value's meaning beside it; loads back to the same recipe."""
    return "\n".join(_lines(recipe, 0)) + "\n"


def _lines(section: BaseModel, depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        note = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:{note}", *_lines(value, depth + 1)]
        elif isinstance(value, dict) and value and all(isinstance(v, BaseModel) for v in value.values()):
            lines.append(f"{indent}{name}:{note}")
            for key, inner in value.items():
                lines += [f"{indent}  {_dump(key)}:", *_lines(inner, depth + 2)]
        else:
            lines.append(f"{indent}{name}: {_dump(value)}{note}")
    return lines


def _dump(value: Any) -> str:
    """A plain value as YAML on one line; with escapes where it holds line breaks or what cannot be printed."""

    def dump(**style: Any) -> str:
        text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, **style)
        return text.strip().removesuffix("...").strip()

    text = dump(allow_unicode=True)
    return text if text.isprintable() else dump(default_style='"')


def _read(name_or_file: str) -> dict[str, Any]:
    file = Path(name_or_file)
    if file.suffix not in (".yaml", ".yml"):
        file = FOLDER / f"{name_or_file}.yaml"
    if not file.is_file():
        raise RecipeError("no such recipe", key="recipe", value=name_or_file,
                          remedy=f"one of {', '.join(list_recipes())}, or a .yaml file")  # fmt: skip
    try:
        values = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"is not YAML: {_on_one_line(error)}", key="recipe", value=str(file)) from error
    if not isinstance(values, dict):
        raise RecipeError("holds no mapping of keys to values", key="recipe", value=str(file))
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as a string; a learning rate typed so must be a number. A key that comes twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} comes twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader) if text.strip() else None
    except yaml.YAMLError as error:
        raise RecipeError(f"is not a YAML value: {_on_one_line(error)}", key=key, value=text) from error


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = values
    for part in path:
        inner = section.get(part)
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{part} is a value and has no keys", key=key, value=value)
        section = inner
    section[last] = value


def _suggest(location: tuple[int | str, ...]) -> str:
    model: Any = Recipe
    of_names = False  # inside a mapping from the user's own names to sections, such as `rewards`
    for part in location[:-1]:
        if of_names:
            of_names = False
            continue
        field = model.model_fields.get(part)
        if field is None:
            return "see `raycap recipe show`"
        options = [field.annotation, *get_args(field.annotation)]
        of_names = get_origin(field.annotation) is dict
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return "see `raycap recipe show`"
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"did you mean {close[0]}?" if close else f"keys here: {', '.join(names)}"
