"""`apex-reward demo`: the whole tour, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.cli.common import SCORE, add_command, print_table, progress_bar

if TYPE_CHECKING:
    from apex_reward.demo.tour import Section


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    add_command(app, demo, panel=SCORE)


def demo(
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="For audio, tables and plots; earlier files are replaced."
        ),
    ] = Path("apex-demo"),
) -> None:
    """Take the tour offline: songs, damage, scores, gradients, pairs and votes.

    Uses the embedded apex-tiny, a demonstration model, and takes under two minutes on two cores.

    Example: apex-reward demo --output tour
    """
    from apex_reward.demo.tour import run_demo

    with progress_bar() as progress:
        task = progress.add_task("working", total=None)
        sections = run_demo(
            output, lambda done, total: progress.update(task, completed=done, total=total)
        )
        for number, section in enumerate(sections, start=1):
            progress.stop()  # the bar must not be drawn into the text
            _show(number, section)
            progress.start()


def _show(number: int, section: Section) -> None:
    from rich.console import Console

    console = Console()
    console.rule(f"[bold]{number}. {section.title}", align="left")
    console.print(section.text, highlight=False, markup=False)
    if section.rows:
        print_table("", section.columns, section.rows)
    console.print()
