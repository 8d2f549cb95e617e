"""What all commands share: exit codes, one line for an error, common options, output that is whole or not there.

0 done, 2 refused (input or configuration, usage included), 1 the work failed. No traceback unless `--debug`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from raycap.errors import RaycapError, Refused, WorkFailed
from raycap.whole_file import write_whole


class Raycap(click.Group):
    """A group that ends the process with the promised exit code, whatever a command raises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a run, not of the alphabet

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        arguments = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments
        extra.pop("standalone_mode", None)
        try:
            code = super().main(arguments, prog_name or "raycap", standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = _fail("stopped", 1, debug)
        except RaycapError as error:
            code = _fail(str(error), error.exit_code, debug)
        except Exception as error:  # noqa: BLE001 - the last place to keep the promise: one line, exit 1
            name = type(error).__name__
            code = _fail(f"{name}: {str(error).strip() or 'no message'} (--debug shows where)", 1, debug)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"raycap: {message}", err=True)
    return code


@contextmanager
def as_options(names: Mapping[str, str]) -> Iterator[None]:
    """Errors from inside call these recipe keys as the command's options: `as_options({"data.root": "--data"})`."""
    try:
        yield
    except RaycapError as error:
        raise _renamed(error, names) from error


def _renamed(error: RaycapError, names: Mapping[str, str]) -> RaycapError:
    keys = "|".join(re.escape(key) for key in sorted(names, key=len, reverse=True))

    def spoken(text: str | None) -> str | None:
        if text is None:
            return None
        text = re.sub(r"data\.skip=\[([^\]]*)\]", r"--skip \1", text)
        return re.sub(rf"(?<![\w.-])({keys})(?![\w]|\.\w)", lambda found: names[found[0]], text)

    changed = type(error)(spoken(error.what) or "", key=spoken(error.key), remedy=spoken(error.remedy))
    changed.value, changed._has_value = error.value, error._has_value
    return changed


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Kept for commands that hand it on; errors look for it in the arguments, so that it works for those of parsing."""
    if value:
        context.meta["raycap.debug"] = True


debug_option = click.option("--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks.")


class AnyPath(click.Path):
    """A path, there or not; an empty one, such as an unset variable of the shell leaves, is not the folder of now."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


checkpoint_option = click.option(
    "--checkpoint", required=True, type=AnyPath(), metavar="FOLDER",
    help="A stage's folder such as STORAGE/NAME/scst, a checkpoint in it, or an export.",
)  # fmt: skip
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
max_pixels_option = click.option(
    "--max-pixels", type=click.IntRange(min=1), help="Larger pictures are refused undecoded; the recipe's when not set."
)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order of the help page; `--debug` last."""

    def decorate(function: Any) -> Any:
        for decorator in reversed([*decorators, debug_option]):
            function = decorator(function)
        return function

    return decorate


def comma_list(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`a,b, c` as ("a", "b", "c"), each once; None when the option is not given."""
    if value is None:
        return None
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def metric_list(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names of metrics, each once, the keys of their output too; an unknown one is a usage error, before any work."""
    from raycap.metrics.score import METRICS, metric_of

    asked = comma_list(context, parameter, value)
    if asked is None:
        return None
    names = [metric_of(name) for name in asked]
    if not names or None in names:
        raise click.BadParameter(f"{value!r}: choose from {', '.join(METRICS)}, or a key of their output")
    return tuple(dict.fromkeys(name for name in names if name is not None))


def json_text(content: Any, indent: int | None = None) -> str:
    """Strict JSON.

    Raises:
        WorkFailed: a number in it is NaN or infinite: JSON has neither, and either would be a fault of ours.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as error:
        raise WorkFailed(f"a figure in it is no finite number: {error}", key="output",
                         remedy="it is not written: report it") from error  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all; its folder is made when missing."""
    write_text(path, json_text(content, indent=1) + "\n")


def write_text(path: Path, text: str, key: str = "--out") -> None:
    """A file, whole or not at all; raises Refused where it cannot be written."""
    check_target(path, key)
    try:
        write_whole(path, text)
    except OSError as error:
        raise Refused(f"cannot be written: {error.strerror}", key=key, value=str(path),
                      remedy="name another place") from error  # fmt: skip


def check_target(path: Path, key: str) -> None:
    """Whether a file can be put there, before any work is done for it; its folder is made when missing.

    Raises:
        Refused: it is a folder or a device, or its own folder cannot be made or written to.
    """
    try:
        if path.is_dir():
            raise Refused("is a folder", key=key, value=str(path), remedy="name a file in it")
        if path.exists() and not path.is_file():  # a device or pipe: the finished file would take its place
            raise Refused("is no plain file", key=key, value=str(path), remedy="name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        why = None if os.access(path.parent, os.W_OK) else "its folder is read-only"
    except OSError as error:
        why = error.strerror
    if why is not None:
        raise Refused(f"cannot be written: {why}", key=key, value=str(path), remedy="name another place")


def out_folder(path: Path) -> Path:
    """The folder, made when missing; raises Refused where files cannot be put there, before any work is done for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        why = None if os.access(path, os.W_OK) else "it is read-only"
    except OSError as error:
        why = error.strerror
    if why is not None:
        raise Refused(f"cannot be written to: {why}", key="--out", value=str(path), remedy="name another folder")
    return path.absolute()
