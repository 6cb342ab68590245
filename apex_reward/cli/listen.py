"""`apex-reward listen`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, VOTES, add_command
from apex_reward.errors import UsageError

_question = partial(typer.Option, rich_help_panel="Votes")


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, listen, panel=VOTES)


@dataclass(frozen=True)
class QuestionOptions:
    """How the questions of the voting page are asked."""

    seed: Annotated[int, _question(metavar="N", help="Of order and sides.")] = 0
    order: Annotated[
        Literal["random", "informative"],
        _question(help="informative: what teaches most, given the votes so far."),
    ] = "random"
    min_seconds: Annotated[
        float, _question(min=0, metavar="SECONDS", help="Of each song, before a vote counts.")
    ] = 3.0


def listen(
    asked: given.RewardOptions,
    running: given.RunOptions,
    questions: QuestionOptions,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PAIRS|BATTLES|FOLDER]",
            help="A table of pairs or battles, or a folder with a sub-folder per system.",
            show_default="none: songs are dropped on the pages",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Votes (.jsonl); an old file goes on.")
    ] = Path("votes.jsonl"),
    votes: Annotated[
        bool, typer.Option("--votes/--no-votes", help="Vote blind, or compare openly by name.")
    ] = True,
    voter: Annotated[
        str, typer.Option(metavar="NAME", help="Name that the page starts with.")
    ] = "",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="Port of the page.")
    ] = 7860,
) -> int:
    """Try songs, compare two, and vote blind on a local page.

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
    comparisons = [] if source is None else read_comparisons(source)
    session = None
    if comparisons and votes:
        session = Session(comparisons, output, **vars(questions))
    # With nothing to vote on the page is for trying songs, so there must be a model.
    judge = given.build_reward(asked, running) if asked.given or source is None else None
    app = make_app(session, voter, reward=judge, comparisons=comparisons)
    goes = f"; votes go to {output}" if session else ""
    typer.echo(f"listen on http://127.0.0.1:{port}{goes}; stop with Ctrl-C", err=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    for reason in session.unreadable.values() if session else ():
        typer.echo(f"not asked: {reason}", err=True)
    return OK
