"""`apex-reward score` and `apex-reward import`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import (
    OK,
    SCORE,
    add_command,
    print_table,
    progress_bar,
    show_failures,
)
from apex_reward.cli.progress import kept_rows, resumable
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.model.encode import Prompts
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring.engines import Engine
    from apex_reward.scoring.inputs import Input
    from apex_reward.scoring.job import OnRow
    from apex_reward.scoring.rows import Tally

SHORT_NAMES = {
    "score_streams": "streams",
    "score_likes": "likes",
    "coherence": "coher",
    "musicality": "music",
    "memorability": "memor",
    "clarity": "clar",
    "naturalness": "natur",
}


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    add_command(app, score, panel=SCORE)
    add_command(app, import_model, "import", panel=SCORE)


def score(
    audio: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders (searched recursively), globs, lists (.txt, .jsonl, .csv, "
            ".parquet), or data sets with an Audio column (.parquet, or as save_to_disk leaves "
            "them)."
        ),
    ],
    asked: given.RewardOptions,
    running: given.EngineOptions,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of the songs: a table with 'audio' or 'path', and 'prompt' or 'lyrics'.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Result file: .jsonl, .csv or .parquet.",
            show_default="the terminal",
        ),
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Write a second file with a row per segment.")
    ] = False,
    members: Annotated[
        bool, typer.Option("--members", help="Add the scores of each member of an ensemble.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run with --output stopped.")
    ] = False,
) -> int:
    """Score songs: a row per input, whatever happens to it.

    Example: apex-reward score songs/ --model apex-tiny --mix aesthetics --output scores.jsonl
    """
    if output is None and (segments or resume):
        raise UsageError("--segments and --resume need --output FILE")
    given.check_reachable(asked)
    from apex_reward.files.songs_inside import songs_beside
    from apex_reward.files.tables import check_format, check_output
    from apex_reward.scoring import ScoreSettings, find_songs
    from apex_reward.scoring.inputs import prompts_for
    from apex_reward.scoring.job import segments_path

    if output is not None:
        check_format(output)
        for path in (output, segments_path(output)):
            check_output(path, [*audio, prompts])
    sources = find_songs(audio, output and songs_beside(output))
    engine, workers = running.engine_and_workers()
    if output is None and engine.several:
        raise UsageError("several processes write one file: give --output FILE")
    judge = given.build_reward(asked, running)
    settings = ScoreSettings(asked.rewarded, segments, members)
    texts = prompts_for(sources, prompts) if judge.model.reads_text else None
    run = _Run(judge, sources, texts, settings, workers, engine)
    if output is None:
        return run.to_terminal()
    return run.to_file(output, resume)


def import_model(
    predictor: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER",
            help="best_model.pt, or a folder or hub id with predictor or head.",
        ),
    ],
    encoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder or hub id of the encoder: MERT, or MuQ.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="To write: config.json, model.safetensors.")
    ],
    kind: Annotated[
        Literal["apex", "songeval", "tunejury"], typer.Option(help="Whose format it is.")
    ] = "apex",
    clap: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder or hub id of CLAP, for tunejury.")
    ] = None,
) -> int:
    """Convert published weights into one folder for --model.

    Example: apex-reward import --predictor best_model.pt --encoder m-a-p/MERT-v1-95M --output apex
    """
    from apex_reward.scoring.convert import import_model as convert

    made = convert(kind, predictor, encoder, output, clap)
    heads = ", ".join(head.name for head in made.heads)
    count = sum(weight.numel() for weight in made.parameters())
    typer.echo(f"{output}: {count:,} weights, heads {heads}")
    typer.echo(f"score with it: apex-reward score SONGS --model {output}")
    return OK


class _Run:
    """Songs to a file or to the terminal, with a bar and a tally."""

    def __init__(
        self,
        reward: Reward,
        sources: list[Input],
        prompts: Prompts,
        settings: Any,
        workers: int,
        engine: Engine,
    ) -> None:
        self.reward, self.sources, self.prompts = reward, sources, prompts
        self.settings, self.workers, self.engine = settings, workers, engine

    def to_file(self, output: Path, resume: bool) -> int:
        """Write every row; name what failed."""
        from apex_reward.scoring import score_to_file

        first = self.engine.share.first
        finished = resume and output.exists() and not kept_rows(output)()
        with _tallying(len(self.sources)) as (tally, on_row), resumable(kept_rows(output)):
            score_to_file(
                self.reward,
                self.sources,
                output,
                self.settings,
                prompts=self.prompts,
                workers=self.workers,
                engine=self.engine,
                resume=resume,
                on_row=on_row,
            )
        if finished and first:
            typer.echo(f"{output} is finished; nothing to do", err=True)
        if first:
            typer.echo(f"{tally} -> {output}")
        return self.engine.ended(show_failures(tally.reasons, "; see the column 'error'"))

    def to_terminal(self) -> int:
        """A table on a terminal, JSON lines into a pipe."""
        from apex_reward.files.tables import json_line
        from apex_reward.scoring import score_songs

        rows = []
        results = score_songs(
            self.reward, self.sources, self.prompts, self.settings, workers=self.workers
        )
        with _tallying(len(self.sources)) as (tally, on_row):
            for row in results:
                on_row(row, True)
                if sys.stdout.isatty():
                    rows.append(row)
                else:
                    typer.echo(json_line(row), nl=False)
        if rows:
            _print_rows(self.reward, rows)
        typer.echo(str(tally), err=True)
        return show_failures(tally.reasons, "; see the column 'error'")


def _print_rows(reward: Reward, rows: list[dict[str, Any]]) -> None:
    """With short names, so that seven heads fit into 80 columns."""
    title = f"Scores by {', '.join(str(source) for source in reward.sources.values())}"
    if reward.demonstration:
        title += " (a demonstration model)"
    heads = [head.name for head in reward.heads]
    values = [name for name in (*heads, "reward") if name in rows[0]]
    print_table(
        title,
        ["song", "time", *(SHORT_NAMES.get(name, name) for name in values), "flags"],
        [
            [
                Path(row["path"]).name,
                _clock(row["duration"]),
                *(_number(name, row[name]) for name in values),
                "failed" if row["error"] else ", ".join(row["flags"]),
            ]
            for row in rows
        ],
    )


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if name.startswith("score_") else f"{value:.2f}"


@contextmanager
def _tallying(total: int) -> Iterator[tuple[Tally, OnRow]]:
    """Counts, and a progress bar that shows them."""
    from apex_reward.scoring.rows import Tally

    tally = Tally()
    with progress_bar(
        "{task.fields[hours]:.2f} h of audio", "{task.fields[speed]:.1f} x real time"
    ) as bar:
        task = bar.add_task("songs", total=total, hours=0.0, speed=0.0)

        def on_row(row: dict[str, Any], fresh: bool) -> None:
            tally.count(row, fresh)
            bar.update(task, advance=1, hours=tally.hours, speed=tally.speed)

        yield tally, on_row
