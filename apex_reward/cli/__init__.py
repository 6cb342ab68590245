"""The `apex-reward` command: each command parses, calls and prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from apex_reward.cli import arena, compare, data, demo, pairs, score, serve, train
from apex_reward.cli.common import INTERRUPTED, add_command

app = typer.Typer(
    name="apex-reward",
    help="Reward models for music generators: score songs, build preference pairs, train, serve, "
    "and measure agreement with human votes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
votes = typer.Typer(
    name="arena",
    help="Agreement with human votes: score, evaluate, calibrate, leaderboard.",
    no_args_is_help=True,
)
VOTES = (arena.score, arena.evaluate, arena.calibrate, arena.leaderboard)
SONGS = (demo.demo, score.score, score.import_, serve.serve, compare.distance, compare.compare)
PREFERENCES = (pairs.pairs, serve.listen)
LABELS = (data.prepare, data.extract)
TRAINING = (*LABELS, train.train, train.grid, train.evaluate, train.distill)
PANELS: dict[str, tuple[Callable[..., Any], ...]]
PANELS = {"Songs": SONGS, "Preferences": PREFERENCES, "Train a predictor": TRAINING}
for panel, commands in PANELS.items():
    for command in commands:
        add_command(app, command, panel)
for command in VOTES:
    add_command(votes, command)
app.add_typer(votes, rich_help_panel="Preferences")


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
