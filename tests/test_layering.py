"""The house has rooms, and imports go one way (docs/architecture.md). Read from the source; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FLOORS: tuple[tuple[str, ...], ...] = (
    ("raycap",),  # raycap/__init__.py itself: the version, which any room may read
    ("errors", "whole_file"),
    ("types",),
    ("recipe",),
    ("rl", "metrics"),
    ("data",),
    ("models",),
    ("decoding", "rewards"),
    ("train", "feedback"),
    ("evaluate",),
    ("cluster",),
    ("serve",),
    ("cli", "jobs", "tune_spaces"),
)
"""From the ground up; rooms of one floor do not import each other."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITH_RAY = {"cluster", "serve", "jobs", "tune_spaces"}
OUTSIDE = ("jobs", "tune_spaces")
"""Rooms that lie beside the package."""


def source_files(repository: Path) -> list[Path]:
    roots = [repository / "raycap", *(repository / name for name in OUTSIDE)]
    return sorted(file for root in roots if root.is_dir() for file in root.rglob("*.py"))


def room_of(file: Path, repository: Path) -> str:
    parts = file.relative_to(repository).with_suffix("").parts
    if parts[0] in OUTSIDE:
        return parts[0]
    return "raycap" if parts[1] == "__init__" else parts[1]


def imported_modules(file: Path, repository: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever in the file: in functions, under TYPE_CHECKING, by name.

    `from a import b` counts as `a.b`, because b may be a module; relative imports are resolved.
    """
    package = list(file.relative_to(repository).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def faults(repository: Path) -> list[str]:
    """Every import that goes up or sideways, every Ray outside its rooms, every room without a place."""
    found = []
    for file in source_files(repository):
        room = room_of(file, repository)
        where = file.relative_to(repository)
        if room not in FLOOR_OF:
            found.append(f"{where}: the room {room} has no place in the house")
            continue
        for line, module in imported_modules(file, repository):
            top, _, rest = module.partition(".")
            if top == "ray" and room not in WITH_RAY:
                found.append(f"{where}:{line}: {room} imports Ray")
            other = rest.partition(".")[0] if top == "raycap" else top if top in OUTSIDE else None
            if other is None or other == room:
                continue
            other = other if other in FLOOR_OF or _is_module(repository, other) else "raycap"
            if FLOOR_OF.get(other, len(FLOORS)) >= FLOOR_OF[room]:
                found.append(f"{where}:{line}: {room} imports {other}")
    return found


def _is_module(repository: Path, name: str) -> bool:
    """Whether raycap.NAME is a room without a place, and not a name that raycap/__init__.py defines."""
    inside = repository / "raycap" / name
    return bool(name) and (inside.is_dir() or inside.with_suffix(".py").is_file())


def test_imports_go_one_way_and_ray_stays_in_its_rooms() -> None:
    assert faults(REPOSITORY) == []


def test_the_walk_sees_the_house() -> None:
    """The rule above would hold of an empty house too."""
    files = source_files(REPOSITORY)
    rooms = {room_of(file, REPOSITORY) for file in files}
    assert {"errors", "types", "recipe", "rl", "metrics", "data", "models", "decoding", "rewards", "train", "evaluate",
            "cluster", "cli", "jobs"} <= rooms  # fmt: skip
    arrows = {
        (room_of(file, REPOSITORY), module.split(".")[1])
        for file in files
        for _, module in imported_modules(file, REPOSITORY)
        if module.startswith("raycap.")
    }
    assert {("train", "decoding"), ("rewards", "metrics"), ("cli", "cluster"), ("jobs", "cluster")} <= arrows
    assert any(module.startswith("ray.") for file in files for _, module in imported_modules(file, REPOSITORY))


def test_the_drawing_says_the_same() -> None:
    """docs/architecture.md holds the order in one line; it and the rule must not drift apart."""
    drawn = " < ".join(", ".join(rooms) for rooms in FLOORS[1:])
    assert drawn in (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def house(folder: Path, **files: str) -> Path:
    """A small house with nothing wrong in it, and some files changed."""
    sound = {
        "raycap/__init__.py": "__version__ = '0'\n",
        "raycap/errors.py": "",
        "raycap/rl/__init__.py": "",
        "raycap/rl/losses.py": "from raycap.errors import RaycapError\nimport raycap\nfrom raycap import __version__\n",
        "raycap/metrics/__init__.py": "",
        "raycap/train/__init__.py": "",
        "raycap/train/scst.py": "from raycap.rl import losses\nfrom . import mle\nfrom .mle import x\nimport numpy\n",
        "raycap/train/mle.py": "from ..rl.losses import loss\nimport rayleigh\n",
        "raycap/cluster/__init__.py": "import ray\nfrom ray.train import report\nimport raycap.train.scst\n",
        "raycap/cli/__init__.py": "from raycap.cluster import run\nfrom raycap import errors\n",
        "jobs/scst.py": "from raycap.cluster import main\nimport ray\n",
    }
    for name, text in {**sound, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_sound_house_has_no_faults(tmp_path: Path) -> None:
    assert faults(house(tmp_path)) == []


RL, MLE, CLI = "raycap/rl/losses.py", "raycap/train/mle.py", "raycap/cli/__init__.py"
ROOT, UTILS = "raycap/__init__.py", "raycap/utils/__init__.py"
PLANTED = {
    "up": (RL, "import raycap.train.scst\n", f"{RL}:1: rl imports train"),
    "up, from": (RL, "from raycap.train.scst import train\n", f"{RL}:1: rl imports train"),
    "up, from the package": (RL, "\nfrom raycap import train\n", f"{RL}:2: rl imports train"),
    "up, relative": (RL, "from ..train import scst\n", f"{RL}:1: rl imports train"),
    "up, relative from the package": (RL, "from .. import train\n", f"{RL}:1: rl imports train"),
    "up, in a function": (RL, "def f():\n    from raycap.train import scst\n", f"{RL}:2: rl imports train"),
    "up, for types": (RL, "if TYPE_CHECKING:\n    from raycap.cli import main\n", f"{RL}:2: rl imports cli"),
    "up, by name": (RL, "importlib.import_module('raycap.train.scst')\n", f"{RL}:1: rl imports train"),
    "sideways": (RL, "from raycap.metrics import cider\n", f"{RL}:1: rl imports metrics"),
    "from the ground": (ROOT, "from raycap.errors import E\n", f"{ROOT}:1: raycap imports errors"),
    "to a job": (RL, "import jobs.scst\n", f"{RL}:1: rl imports jobs"),
    "sideways at the top": ("jobs/scst.py", "from raycap.cli import main\n", "jobs/scst.py:1: jobs imports cli"),
    "Ray": (RL, "import ray\n", f"{RL}:1: rl imports Ray"),
    "Ray, a part": (MLE, "from ray.train import report\n", f"{MLE}:1: train imports Ray"),
    "Ray, in a function": (CLI, "def f():\n    import ray.data\n", f"{CLI}:2: cli imports Ray"),
    "a new room": (UTILS, "", f"{UTILS}: the room utils has no place in the house"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(tmp_path: Path, name: str) -> None:
    file, text, fault = PLANTED[name]
    assert faults(house(tmp_path, **{file: text})) == [fault]


def test_an_import_of_a_room_without_a_place_is_found(tmp_path: Path) -> None:
    planted = house(tmp_path, **{"raycap/helpers.py": "", RL: "from raycap import helpers\n"})
    assert f"{RL}:1: rl imports helpers" in faults(planted)
