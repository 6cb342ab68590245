"""`apex-reward demo`: the whole tour, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli.common import print_table, reports_errors


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    app.command("demo")(reports_errors(demo))


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for audio, tables and plots; earlier files are replaced.")
    ] = Path("apex-demo"),
) -> None:
    """The whole tour offline: synthetic songs, damage, scores, gradients.

    Uses the embedded apex-tiny, a demonstration model, and takes under two minutes on two cores.
    """
    from rich.console import Console

    from apex_reward.demo.tour import run_demo

    console = Console()
    for number, section in enumerate(run_demo(output), start=1):
        console.rule(f"[bold]{number}. {section.title}", align="left")
        console.print(section.text, highlight=False, markup=False)
        if section.rows:
            print_table("", section.columns, section.rows)
        console.print()
