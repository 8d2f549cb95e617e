"""Commands about recipes and runs: `recipe list`, `recipe show`, `run`."""

from __future__ import annotations

import click

from raycap.cli.group import options


@click.group()
def recipe() -> None:
    """The recipes that come with raycap, and what they resolve to."""


@recipe.command("list")
@options()
def list_command() -> None:
    """Names of the recipes, one a line."""
    from raycap.recipe import list_recipes

    for name in list_recipes():
        click.echo(name)


@recipe.command("show")
@click.argument("name", metavar="NAME|FILE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE...]")
@options()
def show_command(name: str, overrides: tuple[str, ...]) -> None:
    """A resolved recipe as YAML, each value with its meaning."""
    from raycap.recipe import load_recipe, to_yaml

    click.echo(to_yaml(load_recipe(name, overrides)), nl=False)


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="recipe=NAME [KEY=VALUE...]")
@options()
def run(arguments: tuple[str, ...]) -> None:
    """Run a recipe's stages, as the jobs do: whatever is missing is done, what is finished is reused."""
    from raycap.cluster.job import main

    debug = click.get_current_context().meta.get("raycap.debug", False)
    main([*arguments, *(["--debug"] if debug else [])])
