"""Options of the commands on votes: which battles, which scores, how they are resampled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.cli.common import FiguresOption, figure_formats

if TYPE_CHECKING:
    from apex_reward.arena.sources import BattleFilter

_which = partial(typer.Option, rich_help_panel="Which battles")
BattlesArgument = Annotated[
    str,
    typer.Argument(
        metavar="BATTLES",
        help="Votes: a .csv, .jsonl or .parquet table, a Music Arena folder, or its hub id.",
    ),
]


@dataclass(frozen=True)
class VoteOptions:
    """Which battles are read."""

    battles: BattlesArgument
    table: Annotated[
        list[str] | None,
        _which(
            metavar="[NAME=]FILE",
            help="Scores of another model, joined by battle_uuid; NAME goes before its columns. "
            "May be repeated.",
        ),
    ] = None
    last_months: Annotated[
        int | None,
        _which(min=1, metavar="N", help="Only the newest N calendar months."),
    ] = None
    with_audio: Annotated[
        bool,
        _which("--with-audio", help="Only battles whose two songs exist."),
    ] = False
    min_listening: Annotated[
        float | None,
        _which(metavar="SECONDS", help="Only battles whose voter listened to each song this long."),
    ] = None
    no_prebaked: Annotated[
        bool,
        _which("--no-prebaked", help="Leave out battles on the Arena's own prompts."),
    ] = False
    binary: Annotated[bool, _which("--binary", help="Only votes for A or B.")] = False

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are joined to the battles."""
        return tuple(self.table or ())

    @property
    def keep(self) -> BattleFilter:
        """The filter that battles pass."""
        from apex_reward.arena.sources import BattleFilter

        return BattleFilter(
            last_months=self.last_months,
            binary=self.binary,
            audio=self.with_audio,
            min_listening=self.min_listening,
            prebaked=not self.no_prebaked,
        )


@dataclass(frozen=True)
class FigureOptions:
    """Which scores are measured, with how many resamples, and where the figures are written."""

    score: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Score with columns NAME_a and NAME_b; may be repeated."),
    ] = None
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For metrics.json and the report.")
    ] = None
    figures: FiguresOption = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed of resampling, folds and draws.")
    ] = 0
    bootstrap: Annotated[int, typer.Option(min=1, metavar="N", help="Bootstrap rounds.")] = 1000

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats in which the report's plots are written as files."""
        return figure_formats(self.figures)
