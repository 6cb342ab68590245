"""What every command shares: errors for people, exit codes, tables and progress on a terminal."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from apex_reward.cli.generate import generated
from apex_reward.errors import ApexError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

OK, SOME_FAILED, WRONG_USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
SHOWN_FAILURES = 10
# Panels of the application's help.
SCORE, VOTES, TRAINING = "Songs", "Preferences", "Train a predictor"
P = ParamSpec("P")
FiguresOption = Annotated[
    str | None,
    typer.Option("--figures", metavar="A,B", help="Write the plots as files too: pdf, svg, png."),
]


def figure_formats(figures: str | None) -> tuple[str, ...]:
    """The formats of `--figures`, PNG first; none where it is not given."""
    from apex_reward.report.figures import parse_formats

    return parse_formats(figures) if figures else ()


def reports_errors(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a command's return value into the exit code, and known errors into one message.

    UsageError exits with 2, every other ApexError with 1, Ctrl-C with 130; an unexpected error
    keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except ApexError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(
                WRONG_USAGE if isinstance(error, UsageError) else SOME_FAILED
            ) from None
        except KeyboardInterrupt:
            # Outside of `resumable`, which says more: while loading, or in short work.
            typer.secho("interrupted; this run kept nothing new", err=True, fg="yellow")
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(code or OK)

    return run


def add_command(
    app: typer.Typer, command: Callable[..., Any], name: str | None = None, panel: str | None = None
) -> None:
    """Give the application a command, its option groups spread and its errors reported.

    Args:
        app: where it goes.
        command: its parameters are options, arguments, and dataclasses of these.
        name: of the command; None: the function's.
        panel: of the application's help.
    """
    app.command(name, rich_help_panel=panel)(reports_errors(generated(command)))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout, as `apex_reward.report.document.print_table`."""
    from apex_reward.report.document import print_table as table  # it loads matplotlib

    table(title, columns, rows)


def show_failures(lines: Sequence[str], where: str = "") -> int:
    """Name the first failures on stderr; the exit code."""
    for line in lines[:SHOWN_FAILURES]:
        typer.secho(line, err=True, fg="red")
    if len(lines) > SHOWN_FAILURES:
        typer.secho(f"and {len(lines) - SHOWN_FAILURES} more{where}", err=True, fg="red")
    return SOME_FAILED if lines else OK


@contextmanager
def progress_bar(*columns: str) -> Iterator[Progress]:
    """A rich progress bar on stderr that is silent when stderr is not a terminal.

    `columns` are extra text columns over task fields, e.g. "{task.fields[speed]}".
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in columns),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        yield progress
