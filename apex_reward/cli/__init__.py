"""The `apex-reward` command. Thin: parse, call, print; heavy imports happen inside commands."""

from __future__ import annotations

import typer

from apex_reward.cli import arena, demo, pairs, score, serve, train

app = typer.Typer(
    name="apex-reward",
    help="Reward model for music generators: score songs, build preference pairs, train, and "
    "measure agreement with human votes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for register in (
    demo.register,
    score.register,
    serve.register,
    pairs.register,
    train.register,
    arena.register,
):
    register(app)


def main() -> None:
    """Entry point of the console script."""
    app()
