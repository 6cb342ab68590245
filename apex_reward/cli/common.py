"""Shared by every command: errors, exit codes, tables, progress, and what an interrupt leaves."""

from __future__ import annotations

import functools
import gc
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec

import typer

from apex_reward.cli.generate import generated
from apex_reward.errors import ApexError, UsageError

OK, SOME_FAILED, WRONG_USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
SHOWN_FAILURES = 10
LINE_SECONDS = 30.0
P = ParamSpec("P")
# Called with a name, the number of finished steps, the total, and a note.
Update = Callable[..., None]


def figure_formats(text: str | None) -> tuple[str, ...]:
    """The formats of `--figures`, PNG first; none without the option."""
    from apex_reward.report.figures import parse_formats  # it loads matplotlib

    return parse_formats(text) if text else ()


Figures = Annotated[Sequence[str], "A,B", figure_formats]
Folder = Annotated[Path, "FOLDER", "-o"]
File = Annotated[Path, "FILE", "-o"]


def add_command(app: typer.Typer, command: Callable[..., Any], panel: str | None = None) -> None:
    """Add a command to the application: its options are generated and its errors reported.

    Args:
        app: the application or a group of it.
        command: as `apex_reward.cli.generate.generated` reads it; its name is the command's.
        panel: heading in the application's help.
    """
    name = command.__name__.strip("_")
    app.command(name, rich_help_panel=panel)(reports_errors(generated(command)))


def reports_errors(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a command's return value into the exit code, and known errors into one message.

    UsageError exits with 2, every other ApexError with 1, Ctrl-C with 130. An unexpected error
    keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with noted_interrupts() as pressed:
            try:
                code = command(*args, **kwargs)
            except typer.Exit:
                raise
            except (KeyboardInterrupt, Exception) as error:
                if pressed or isinstance(error, KeyboardInterrupt):
                    # Outside of `resumable`: while a model loads, or in short work.
                    show("interrupted; this run kept nothing new", "yellow")
                    code = INTERRUPTED
                elif isinstance(error, ApexError):
                    show(f"error: {error}", "red")
                    code = WRONG_USAGE if isinstance(error, UsageError) else SOME_FAILED
                else:
                    raise
        raise typer.Exit(code or OK)

    return run


@contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage is collected inside the block, and what was made there is never looked at again.

    Importing makes a million objects and next to no garbage, and each collection visits them all.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """The presses of Ctrl-C so far, which a library may turn into an error of its own."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    usual = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not usual:
        yield pressed
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


def show(text: str, colour: str | None = None, err: bool = True) -> None:
    """Print a text on stderr or stdout: wrapped between words on a terminal, and always UTF-8."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if (sys.stderr if err else sys.stdout).isatty():
        columns = shutil.get_terminal_size().columns
        text = textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)
    typer.secho(text, err=err, fg=colour)


def show_failures(lines: Sequence[str], where: str = "") -> int:
    """Print the first failures on stderr; the exit code."""
    for line in lines[:SHOWN_FAILURES]:
        show(line, "red")
    if len(lines) > SHOWN_FAILURES:
        show(f"and {len(lines) - SHOWN_FAILURES} more{where}", "red")
    return SOME_FAILED if lines else OK


def show_warnings(report: dict[str, Any]) -> None:
    """Print the `warnings` of a report on stderr."""
    for warning in report["warnings"]:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout, as `apex_reward.report.document.print_table`."""
    from apex_reward.report.document import print_table as table  # it loads matplotlib

    table(title, columns, rows)


@contextmanager
def progress(lines: bool = True) -> Iterator[Update]:
    """A function that shows progress on stderr: a bar per name on a terminal.

    Args:
        lines: without a terminal print lines: at most one per name in `LINE_SECONDS`, and one at
            the end.
    """
    from rich import progress as rich
    from rich.console import Console

    terminal = sys.stderr.isatty()
    bars: dict[str, rich.TaskID] = {}
    shown: dict[str, float] = {}
    started = time.monotonic()
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[note]}"),
        rich.TimeRemainingColumn(),
    )
    bar = rich.Progress(
        *columns, console=Console(stderr=True), disable=not terminal, transient=True
    )

    def update(name: str, done: float, total: float | None, note: str = "") -> None:
        if terminal:
            if name not in bars:
                bars[name] = bar.add_task(name, total=total, note="")
            bar.update(bars[name], completed=done, total=total, note=note)
        elif lines and total is not None:
            now = time.monotonic()
            if done >= total or now - shown.get(name, started) >= LINE_SECONDS:
                shown[name] = now
                show(f"{name}: {done:g} of {total:g} {note}".rstrip())

    with bar:
        yield update


@contextmanager
def counting(name: str, total: int) -> Iterator[Callable[..., None]]:
    """A function to call, with anything, after each of `total` steps; it moves a bar."""
    done = 0
    with progress(lines=False) as update:
        update(name, 0, total)

        def step(*_: object) -> None:
            nonlocal done
            done += 1
            update(name, done, total)

        yield step


@contextmanager
def resumable(kept: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C print what this run kept and how to continue, and exit with 130.

    Args:
        kept: names the files that an interrupted run leaves; empty text for none.
    """
    try:
        yield
    except KeyboardInterrupt:
        left = kept()
        if left:
            text = f"kept: {left}; run the same command with --resume to continue"
        else:
            text = "this run kept nothing new"
        show(f"interrupted; {text}", "yellow")
        raise typer.Exit(INTERRUPTED) from None


def kept_rows(output: Path) -> Callable[[], str]:
    """For `resumable`: the finished rows beside a result file."""
    partial = output.with_name(output.name + ".partial")
    return lambda: f"the rows so far, in {partial}" if partial.exists() else ""
