"""Progress of long work: bars on a terminal, else a line now and then; how to go on after ^C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from apex_reward.cli.common import INTERRUPTED, progress_bar

LINE_SECONDS = 30.0
# Called with a name, what is done, the total, and a note.
Update = Callable[[str, float, float, str], None]


@contextmanager
def progress_updates() -> Iterator[Update]:
    """A function that shows progress on stderr, one bar or line per name."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    with progress_bar("{task.fields[note]}") as progress:
        bars = {}

        def update(name: str, done: float, total: float, note: str = "") -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total, note="")
            progress.update(bars[name], completed=done, note=note)

        yield update


def _lines() -> Update:
    """Plain lines, at most one per name in `LINE_SECONDS`, and one at the end."""
    shown: dict[str, float] = {}
    started = time.monotonic()

    def update(name: str, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if done >= total or now - shown.get(name, started) >= LINE_SECONDS:
            shown[name] = now
            typer.echo(f"{name}: {done:g} of {total:g} {note}".rstrip(), err=True)

    return update


@contextmanager
def resumable(kept: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C say what was kept and how to go on, and exit with 130.

    Args:
        kept: says what an interrupted run leaves; an empty text where it is nothing.
    """
    try:
        yield
    except KeyboardInterrupt:
        found = kept()
        text = f"kept: {found}; go on with the same command and --resume" if found else "kept: none"
        typer.secho(f"interrupted; {text}", err=True, fg="yellow")
        raise typer.Exit(INTERRUPTED) from None


def kept_rows(output: Path) -> Callable[[], str]:
    """For `resumable`: the rows that have grown beside a result file."""
    partial = output.with_name(output.name + ".partial")
    return lambda: f"the rows so far, in {partial}" if partial.exists() else ""
