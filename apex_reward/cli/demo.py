"""`apex-reward demo`: the whole tour, offline."""

from __future__ import annotations

import itertools
from pathlib import Path

import typer

from apex_reward.cli.common import (
    SCORE,
    Folder,
    add_command,
    print_table,
    progress_updates,
    show,
)


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, demo, panel=SCORE)


def demo(output: Folder = Path("apex-demo")) -> None:
    """Take the tour offline: songs, damage, scores, gradients, pairs and votes.

    It uses the embedded apex-tiny, a demonstration model, and takes under two minutes on two cores.

    Example: apex-reward demo --output tour

    Args:
        output: folder for audio, tables and plots. Earlier files are replaced.
    """
    show("The tour starts. It takes under two minutes on two cores.")
    from rich.console import Console

    from apex_reward.demo.tour import run_demo

    console = Console()
    sections = run_demo(output, lambda *step: bar(*step))
    for number in itertools.count(1):
        with progress_updates() as bar:  # it ends before the text, which would overwrite it
            section = next(sections, None)
        if section is None:
            return
        console.rule(f"[bold]{number}. {section.title}", align="left")
        console.print(section.text, highlight=False, markup=False)
        if section.rows:
            print_table("", section.columns, section.rows)
        console.print()
