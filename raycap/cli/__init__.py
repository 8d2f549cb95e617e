"""`raycap ...`: each command parses, calls one function, prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import click

import raycap
from raycap.cli.group import Raycap, debug_option
from raycap.cli.runs import recipe, run
from raycap.cli.scoring import correlate, score, tokenize
from raycap.cli.systems import caption, evaluate, export
from raycap.cli.watching import watch

COMMANDS = (run, recipe, watch, caption, evaluate, export, score, correlate, tokenize)


@click.group(cls=Raycap)
@click.version_option(raycap.__version__, prog_name="raycap")
@debug_option
def main() -> None:
    """Train image captioners with reinforcement learning on Ray; caption, evaluate and score with them.

    Exit code 0: done. 2: the input or the configuration is refused. 1: the work failed.
    """


for _command in COMMANDS:
    main.add_command(_command)
