"""The command line of every job: `recipe=NAME key=value ...`, exit codes, errors as one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from raycap.cluster.storage import check_places
from raycap.errors import RaycapError
from raycap.recipe import load_recipe


def main(arguments: Sequence[str] | None = None, *, default: str = "", presets: Sequence[str] = ()) -> None:
    """Run a recipe's stages and leave with 0 (done), 2 (refused: input or configuration) or 1 (the work failed).

    Args:
        arguments: `recipe=NAME_OR_FILE`, overrides `key=value`, and `--debug` for a traceback; the process's own
            when None.
        default: the recipe when none is named.
        presets: overrides that the job sets; the user's win over them.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [item for item in given if item != "--debug"]
    names = [item.removeprefix("recipe=") for item in given if item.startswith("recipe=")]
    overrides = [item for item in given if not item.startswith("recipe=")]
    try:
        recipe = load_recipe((names or [default])[-1], [*presets, *overrides])
        check_places(recipe)
        from raycap.cluster.run import run_recipe  # seconds of imports: what is refused above is refused before

        run_recipe(recipe)
    except RaycapError as error:
        if debug:
            traceback.print_exc()
        print(f"raycap: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last place to keep the promise: one line, exit 1
        if debug:
            traceback.print_exc()
        what = f"{type(error).__name__}: {str(error).strip()[:2000] or 'no message'}"
        print(f"raycap: {what} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("raycap: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(1)
