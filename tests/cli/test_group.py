"""The promises of every command: exit codes, one line for an error, nothing heavy before the work."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import click
import pytest
import yaml
from click.testing import CliRunner

from raycap.cli.group import Raycap, as_options, options, write_json, write_text
from raycap.data.images import ImageBroken
from raycap.errors import DataError, RaycapError, RecipeError, Refused, WorkFailed
from raycap.recipe import Recipe, list_recipes, load_recipe

HEAVY = {
    "torch",
    "numpy",
    "ray",
    "transformers",
    "open_clip",
    "timm",
    "PIL",
    "pydantic",
    "yaml",
    "pyarrow",
    "matplotlib",
}
COMMANDS = ["run", "recipe", "watch", "caption", "evaluate", "export", "score", "correlate", "tokenize"]


def fails_with(error: BaseException) -> click.Group:
    """A group with one command, `work`, that raises."""

    @options()
    def work() -> None:
        raise error

    group = Raycap("raycap")
    group.add_command(click.command()(work))
    return group


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            Refused("expected 1", key="seed", value="x", remedy="give one"),
            2,
            "raycap: seed = 'x': expected 1 (give one)",
        ),
        (RecipeError("no such key"), 2, "raycap: no such key"),
        (WorkFailed("it broke"), 1, "raycap: it broke"),
        (ZeroDivisionError("division by zero"), 1, "raycap: ZeroDivisionError: division by zero (--debug shows where)"),
        (RuntimeError(), 1, "raycap: RuntimeError: no message (--debug shows where)"),
        (KeyboardInterrupt(), 1, "raycap: stopped"),
        (click.UsageError("no"), 2, "Error: no"),
    ],
)
def test_exit_codes_and_one_line(error: BaseException, code: int, line: str) -> None:
    result = CliRunner().invoke(fails_with(error), ["work"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.strip().split("\n")[-1] == line
    assert "Traceback" not in result.stderr


def test_debug_shows_where() -> None:
    result = CliRunner().invoke(fails_with(WorkFailed("it broke")), ["work", "--debug"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise error" in result.stderr
    assert result.stderr.strip().endswith("raycap: it broke")


def test_errors_name_the_options_of_a_command() -> None:
    names = {"data.root": "--data", "data.skip": "--skip", "data.max_pixels": "--max-pixels"}
    with pytest.raises(DataError) as caught, as_options(names):
        raise DataError("bad", key="data.root", value="data.root", remedy="data.skip=[image_broken], data.max_pixels")
    assert str(caught.value) == "--data = 'data.root': bad (--skip image_broken, --max-pixels)"
    with pytest.raises(ImageBroken) as broken, as_options(names):
        raise ImageBroken("metadata.root stays", key="image")
    assert str(broken.value) == "image: metadata.root stays"
    with pytest.raises(RaycapError) as none, as_options(names):
        raise DataError("no value", key="data.root", value=None)
    assert str(none.value) == "--data = None: no value"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "new" / "a.json", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(Refused, match=r"a\.json.*No space left"):
        write_text(tmp_path / "new" / "a.json", "new")
    monkeypatch.undo()
    assert (tmp_path / "new" / "a.json").read_text() == "old"
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Refused, match=r"--per-image = .*a\.json.*No space left"):
        write_text(tmp_path / "new" / "a.json", "new", "--per-image")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"], "the unfinished file is left behind"
    assert (tmp_path / "new" / "a.json").read_text() == "old"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path, bad: float) -> None:
    with pytest.raises(WorkFailed, match="no finite number"):
        write_json(tmp_path / "a.json", {"metrics": {"clipscore": bad}})
    assert not list(tmp_path.iterdir())


def test_help_lists_the_commands_and_each_has_its_own(raycap) -> None:
    result = raycap("--help")
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:")[1].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == COMMANDS
    for command in COMMANDS:
        result = raycap(command, "--help")
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: raycap " + command)


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from raycap.cli import main
try:
    main(["evaluate", "--help"])
except SystemExit as left:
    print(left.code, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "0 []"
    assert "--checkpoint" in done.stdout


def test_usage_errors_are_refusals(refused, raycap) -> None:
    assert "No such command 'captoin'" in refused("captoin")
    assert "--checkpoint" in refused("evaluate", "--data", "x")
    assert "--bogus" in refused("tokenize", "--bogus")
    assert raycap().exit_code == 2


def test_recipe_list_and_show(raycap, refused) -> None:
    assert raycap("recipe", "list").stdout.split() == list_recipes()
    result = raycap("recipe", "show", "scenes", "scst.steps=7", "storage=/s")
    assert result.exit_code == 0
    assert Recipe.model_validate(yaml.safe_load(result.stdout)) == load_recipe("scenes", ["scst.steps=7", "storage=/s"])
    assert "# of the run: its folder under `storage`" in result.stdout
    assert "no such recipe" in refused("recipe", "show", "nope")
    assert "did you mean steps?" in refused("recipe", "show", "scenes", "scst.stepz=3")
    # this command has recipe keys and no options for them
    assert refused("recipe", "show", "scenes", "data.max_pixels=x").startswith("raycap: data.max_pixels = 'x'")


@pytest.fixture
def run_recipe(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What `raycap run` runs, in place of the stages (which need Ray)."""
    seen: list[Recipe] = []

    def stub(recipe: Recipe) -> None:
        seen.append(recipe)
        if recipe.seed == 3:
            raise WorkFailed("a stage broke", key="stage", value="mle")
        if recipe.seed == 4:
            raise RuntimeError("what nobody thought of")

    module = ModuleType("raycap.cluster.run")
    module.run_recipe = stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "raycap.cluster.run", module)
    return seen


def test_run_runs_the_recipe(raycap, refused, run_recipe: list[Recipe]) -> None:
    assert raycap("run", "recipe=scenes", "storage=/s", "scst.steps=3").exit_code == 0
    assert run_recipe == [load_recipe("scenes", ["storage=/s", "scst.steps=3"])]
    assert refused("run", "recipe=scenes", "storage=/s", "seed=3", code=1) == "raycap: stage = 'mle': a stage broke"
    assert "RuntimeError: what nobody thought of" in refused("run", "recipe=scenes", "storage=/s", "seed=4", code=1)
    assert "Traceback" in raycap("run", "recipe=scenes", "storage=/s", "seed=3", "--debug").stderr


def test_run_refuses_before_any_work(refused, run_recipe: list[Recipe]) -> None:
    assert "storage = 'relative'" in refused("run", "recipe=scenes", "storage=relative")
    assert "storage = None: is not set" in refused("run", "recipe=scenes", "storage=")
    assert "scst.lr" in refused("run", "recipe=scenes", "storage=/s", "scst.lr=x")
    assert "no such recipe" in refused("run", "storage=/s")
    refused("run")
    assert run_recipe == []
