"""The `apex-reward` command: each command parses, calls and prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from apex_reward.cli import arena, compare, data, demo, distance, listen, pairs, score, serve, train
from apex_reward.cli.common import INTERRUPTED

app = typer.Typer(
    name="apex-reward",
    help="Reward models for music generators: score songs, build preference pairs, train, serve, "
    "and measure agreement with human votes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, score, serve, pairs, data, train, arena, distance, compare, listen):
    command.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from apex_reward import __version__

        typer.echo(f"apex-reward {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Reward models for music generators."""


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:  # before the command starts; a command prints what it kept
        sys.exit(INTERRUPTED)
