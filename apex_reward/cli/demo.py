"""`apex-reward demo`: the whole tour, offline."""

from __future__ import annotations

import itertools
from pathlib import Path

from apex_reward.cli.common import Folder, print_table, progress, show


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
        with progress() as bar:  # it ends before the text, which would overwrite it
            section = next(sections, None)
        if section is None:
            return
        console.rule(f"[bold]{number}. {section.title}", align="left")
        console.print(section.text, highlight=False, markup=False)
        if section.rows:
            print_table("", section.columns, section.rows)
        console.print()
