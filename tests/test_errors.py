"""What raycap raises on purpose: key, value and remedy in the message, an exit code, safe across processes."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest

import raycap.data.images
from raycap import errors
from raycap.errors import RaycapError, Refused, WorkFailed

REPOSITORY = Path(__file__).parents[1]


def family(root: type[RaycapError]) -> list[type[RaycapError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in family(child))]


KINDS = sorted(
    {kind for kind in family(RaycapError) if kind.__module__.startswith("raycap.")}, key=lambda kind: kind.__name__
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_carries_key_value_and_remedy_in_its_message(kind: type[RaycapError]) -> None:
    error = kind("expected frozen or full", key="captioner.lm_tuning", value="lorra", remedy="take full")
    assert str(error) == "captioner.lm_tuning = 'lorra': expected frozen or full (take full)"
    assert (error.what, error.key, error.value, error.remedy) == (
        "expected frozen or full", "captioner.lm_tuning", "lorra", "take full",
    )  # fmt: skip


def test_what_is_not_given_is_not_shown_and_none_is_a_value() -> None:
    assert str(RaycapError("is broken")) == "is broken"
    assert str(RaycapError("is broken", key="x")) == "x: is broken"
    assert str(RaycapError("is broken", key="x", value=None)) == "x = None: is broken"
    assert str(RaycapError("is broken", key="x", value="")) == "x = '': is broken"
    assert str(RaycapError("is broken", remedy="mend it")) == "is broken (mend it)"
    assert RaycapError("is broken", key="x").value is None


def test_two_kinds_matter_to_callers() -> None:
    """Refused: nothing was started (2). WorkFailed: it was, and failed (1). Nothing is both or neither."""
    for kind in KINDS:
        if kind is not RaycapError:
            assert issubclass(kind, Refused) != issubclass(kind, WorkFailed), kind
        assert kind.exit_code == (2 if issubclass(kind, Refused) else 1)
    refused = {kind.__name__ for kind in family(Refused)}
    failed = {kind.__name__ for kind in family(WorkFailed)}
    assert {"RecipeError", "DataError", "StaleStage", "CheckpointError", "ImageBroken"} <= refused
    assert {"RewardError", "Collapsed"} <= failed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, {"key": "k"}, {"key": "k", "value": None}, {"key": "k", "value": (1, "a")}])
def test_errors_cross_processes_whole(kind: type[RaycapError], given: dict[str, object]) -> None:
    error = kind("what", remedy="do this", **given)  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.key, again.value, again.remedy, again.exit_code) == (
        error.key, error.value, error.remedy, error.exit_code,
    )  # fmt: skip


def test_errors_are_documented_and_live_in_errors_py_or_beside_what_they_are_about() -> None:
    for kind in KINDS:
        assert inspect.getdoc(kind), kind
    public = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RaycapError)}
    assert {kind for kind in KINDS if kind.__module__ == "raycap.errors"} == public
    assert issubclass(raycap.data.images.UnusableImage, errors.DataError)


def nameless(text: str, kinds: set[str]) -> list[int]:
    """Lines that raise one of these errors without saying which key, file or option it is about."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        called = node.exc.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        given = {word.arg for word in node.exc.keywords}
        if name in kinds and "key" not in given and None not in given:
            lines.append(node.lineno)
    return lines


WITHOUT_KEY = {
    "raycap/recipe/load.py": 1,  # two values that contradict each other: the message names both
    "raycap/cli/systems.py": 1,  # how many pictures could not be read, each of which was named on a line of its own
}


def test_every_raise_names_its_key() -> None:
    kinds = {kind.__name__ for kind in KINDS} - {"Stopped"}  # nothing is wrong with anything: somebody asked for it
    found = {}
    for file in sorted((REPOSITORY / "raycap").rglob("*.py")):
        name, lines = str(file.relative_to(REPOSITORY)), nameless(file.read_text(encoding="utf-8"), kinds)
        if len(lines) > WITHOUT_KEY.get(name, 0):
            found[name] = lines
    assert found == {}


def test_a_raise_without_a_key_is_found() -> None:
    planted = ["raise errors.DataError('a', key='k')", "raise DataError('b')", "raise ValueError('c')", "raise",
               "raise DataError(**x)", "raise errors.DataError(what, value=3) from error"]  # fmt: skip
    assert nameless("\n".join(planted), {"DataError"}) == [2, 6]
