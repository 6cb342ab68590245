"""`apex-reward listen`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli.common import OK, reports_errors
from apex_reward.errors import UsageError


class Order(StrEnum):
    """Orders of the questions."""

    random = "random"
    informative = "informative"


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    app.command("listen")(reports_errors(listen))


def listen(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS|BATTLES|FOLDER",
            help="A table of pairs or battles, or a folder with a sub-folder per system.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Votes (.jsonl); an old file goes on.")] = Path(
        "votes.jsonl"
    ),
    voter: Annotated[str, typer.Option(help="Name that the page starts with.")] = "",
    seed: Annotated[int, typer.Option(help="Of order and sides.")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    order: Annotated[
        Order, typer.Option(help="informative: smallest margins first.")
    ] = Order.random,
    min_seconds: Annotated[
        float, typer.Option(min=0, help="Of each song, before a vote counts.")
    ] = 3.0,
) -> int:
    """Compare songs blind on a local page; every vote is a row that `arena` reads.

    Example: apex-reward listen pairs/pairs.jsonl --output votes.jsonl
    """
    try:
        import uvicorn

        from apex_reward.listen.app import make_app
    except ImportError as error:
        raise UsageError(
            f"listening needs `pip install 'apex-reward[listen]'` ({error})"
        ) from error
    from apex_reward.listen.session import Session
    from apex_reward.listen.sources import read_comparisons

    if output.suffix.lower() != ".jsonl":
        raise UsageError(f"--output {output}: votes are written as .jsonl")
    session = Session(
        read_comparisons(source), output, seed=seed, order=order.value, min_seconds=min_seconds
    )
    typer.echo(
        f"listen on http://127.0.0.1:{port}; votes go to {output}; stop with Ctrl-C", err=True
    )
    uvicorn.run(make_app(session, voter), host="127.0.0.1", port=port, log_level="warning")
    for reason in session.unreadable.values():
        typer.echo(f"not asked: {reason}", err=True)
    return OK
