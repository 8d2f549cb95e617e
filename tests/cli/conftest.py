"""The command line in process, as a shell would see it: exit code, standard output, standard error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from raycap.cli import main

Raycap = Callable[..., Result]


@pytest.fixture
def raycap() -> Raycap:
    """raycap("caption", "a.png", "--checkpoint", folder) runs a command; arguments may be paths."""

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, list(map(str, arguments)), input=stdin, prog_name="raycap")

    return run


@pytest.fixture
def refused(raycap: Raycap) -> Callable[..., str]:
    """refused(*arguments, code=2) checks the exit code and that one line says why; returns the line."""

    def run(*arguments: object, code: int = 2, stdin: bytes | None = None) -> str:
        result = raycap(*arguments, stdin=stdin)
        assert result.exit_code == code, result.output
        assert result.stdout == "" or code == 1
        line = result.stderr.strip().split("\n")[-1]
        assert line.startswith(("raycap: ", "Error: ")), result.stderr
        assert "Traceback" not in result.stderr
        return line

    return run
