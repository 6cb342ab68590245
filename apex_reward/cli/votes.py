"""The options that the commands on votes share: which battles, which scores, how resampled."""

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
        list[Path] | None,
        _which(metavar="FILE", help="Scores of another model, joined by battle_uuid; repeatable."),
    ] = None
    last_months: Annotated[
        int | None,
        _which(min=1, metavar="N", help="Only the newest N calendar months."),
    ] = None
    with_audio: Annotated[
        bool,
        _which("--with-audio", help="Only battles whose two songs are there."),
    ] = False
    min_listening: Annotated[
        float | None,
        _which(metavar="SECONDS", help="Only battles whose songs were each heard so long."),
    ] = None
    no_prebaked: Annotated[
        bool,
        _which("--no-prebaked", help="Leave out battles on the Arena's own prompts."),
    ] = False
    binary: Annotated[bool, _which("--binary", help="Only votes for A or B.")] = False

    @property
    def tables(self) -> tuple[Path, ...]:
        """The tables that are joined to the battles."""
        return tuple(self.table or ())

    @property
    def keep(self) -> BattleFilter:
        """What a battle must be like."""
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
    """Which scores are judged, with how many resamples, and where the figures go."""

    score: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Score with columns NAME_a and NAME_b; may be repeated."),
    ] = None
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For metrics.json and the report.")
    ] = None
    figures: FiguresOption = None
    seed: Annotated[int, typer.Option(metavar="N", help="Of resampling, folds and draws.")] = 0
    bootstrap: Annotated[int, typer.Option(min=1, metavar="N", help="Bootstrap rounds.")] = 1000

    @property
    def formats(self) -> tuple[str, ...]:
        """In which the report's figures are written as files."""
        return figure_formats(self.figures)
