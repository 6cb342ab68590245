"""`apex-reward score` and `apex-reward import`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.cli.common import OK, SOME_FAILED, progress_bar, reports_errors
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.model import ApexReward
    from apex_reward.scoring import ScoreSettings
    from apex_reward.scoring.job import OnRow
    from apex_reward.scoring.tally import Tally

DEFAULT_MODEL = "amaai-lab/apex"
SHOWN_FAILURES = 10
SHORT_NAMES = {
    "score_streams": "streams",
    "score_likes": "likes",
    "coherence": "coher",
    "musicality": "music",
    "memorability": "memor",
    "clarity": "clar",
    "naturalness": "natur",
}
DEMONSTRATION = (
    "note: these scores are from a demonstration model, not the published one; they show how the "
    "command works, not how good a song is"
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    app.command("score")(reports_errors(score))
    app.command("import")(reports_errors(import_model))


def score(
    audio: Annotated[
        list[str],
        typer.Argument(help="Files, folders (searched recursively), globs, .txt or .jsonl lists."),
    ],
    model: Annotated[
        str, typer.Option(help="Hub id, folder, or the embedded demonstration model apex-tiny.")
    ] = DEFAULT_MODEL,
    encoder: Annotated[
        str | None, typer.Option(help="Hub id or folder of the encoder, where the model has none.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Result file, .jsonl, .csv or .parquet. None: the terminal."),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            help="Add a column 'reward': musicality=1,score_likes=0.3, or popularity, aesthetics, "
            "overall, or the model's calibrated 'preference'."
        ),
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Write a second file with a row per segment.")
    ] = False,
    segment_tail: Annotated[
        str | None, typer.Option(help="How a song's last segment counts: pad, mask or drop.")
    ] = None,
    batch_segments: Annotated[
        int | None, typer.Option(min=1, help="Segments per encoder batch.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in this one.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the encoder: float32, bfloat16 or float16.")
    ] = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run with --output stopped.")
    ] = False,
) -> int:
    """Score songs: a row per input, whatever happens to it."""
    from apex_reward.files.tables import check_format
    from apex_reward.scores.mix import RewardMix
    from apex_reward.scoring import ScoreSettings, default_workers, find_audio, load_scorer
    from apex_reward.scoring.rows import PREFERENCE

    if output is None and (segments or resume):
        raise UsageError("--segments and --resume need --output FILE")
    if output is not None:
        check_format(output)
    if mix is not None and mix != PREFERENCE:
        RewardMix.parse(mix)
    sources = find_audio(audio)
    scorer = load_scorer(
        model, encoder=encoder, device=device, dtype=dtype, segment_tail=segment_tail
    )
    if scorer.config.demonstration:
        typer.secho(DEMONSTRATION, err=True, fg="yellow")
    settings = ScoreSettings(mix, segments, batch_segments)
    count = default_workers() if workers is None else workers
    if output is None:
        return _to_terminal(scorer, sources, settings, count)
    return _to_file(scorer, sources, output, settings, workers=count, resume=resume)


def import_model(
    predictor: Annotated[
        str, typer.Option(help="best_model.pt, or a folder or hub id that holds the predictor.")
    ],
    encoder: Annotated[str, typer.Option(help="Folder or hub id in MERT's layout.")],
    output: Annotated[Path, typer.Option(help="Folder to write: config.json, model.safetensors.")],
) -> int:
    """Convert published weights into one folder for --model."""
    from apex_reward.scoring.convert import import_published

    model = import_published(predictor, encoder, output)
    heads = ", ".join(model.config.head_names)
    typer.echo(f"{output}: {model.num_parameters():,} weights, heads {heads}")
    typer.echo(f"score with it: apex-reward score SONGS --model {output}")
    return OK


def _to_file(
    model: ApexReward,
    sources: list[str],
    output: Path,
    settings: ScoreSettings,
    *,
    workers: int,
    resume: bool,
) -> int:
    from apex_reward.scoring import score_to_file

    if resume and output.exists():
        typer.echo(f"{output} is there already; nothing to do", err=True)
    with _tallying(len(sources)) as (tally, on_row):
        score_to_file(
            model, sources, output, settings, workers=workers, resume=resume, on_row=on_row
        )
    typer.echo(f"{tally} -> {output}")
    return _failures(tally)


def _to_terminal(
    model: ApexReward, sources: list[str], settings: ScoreSettings, workers: int
) -> int:
    """A table on a terminal, JSON lines into a pipe."""
    from apex_reward.files.tables import json_line
    from apex_reward.scoring import score_songs

    rows = []
    results = score_songs(
        model,
        sources,
        mix=settings.mix,
        batch_segments=settings.batch_segments,
        workers=workers,
    )
    with _tallying(len(sources)) as (tally, on_row):
        for row in results:
            on_row(row, True)
            if sys.stdout.isatty():
                rows.append(row)
            else:
                typer.echo(json_line(row), nl=False)
    if rows:
        _print_rows(model, rows)
    typer.echo(str(tally), err=True)
    return _failures(tally)


def _print_rows(model: ApexReward, rows: list[dict[str, Any]]) -> None:
    """Without lines and with short names, so that seven heads fit into 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"Scores by {model.config.name_or_path}"
    if model.config.demonstration:
        title += " (a demonstration model)"
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("song", overflow="ellipsis", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    values = [name for name in (*model.config.head_names, "reward") if name in rows[0]]
    for name in values:
        table.add_column(SHORT_NAMES.get(name, name), justify="right", no_wrap=True)
    table.add_column("flags")
    for row in rows:
        note = "failed" if row["error"] else ", ".join(row["flags"])
        table.add_row(
            escape(Path(row["path"]).name),
            _clock(row["duration"]),
            *(_number(name, row[name]) for name in values),
            note,
        )
    Console().print(table)


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if name.startswith("score_") else f"{value:.2f}"


@contextmanager
def _tallying(total: int) -> Iterator[tuple[Tally, OnRow]]:
    """Counts, and a progress bar that shows them."""
    from apex_reward.scoring.tally import Tally

    tally = Tally()
    with progress_bar(
        "{task.fields[hours]:.2f} h of audio", "{task.fields[speed]:.1f} x real time"
    ) as bar:
        task = bar.add_task("songs", total=total, hours=0.0, speed=0.0)

        def on_row(row: dict[str, Any], fresh: bool) -> None:
            tally.count(row, fresh)
            bar.update(task, advance=1, hours=tally.hours, speed=tally.speed)

        yield tally, on_row


def _failures(tally: Tally) -> int:
    """Name the failed inputs on stderr; the exit code."""
    for reason in tally.reasons[:SHOWN_FAILURES]:
        typer.secho(reason, err=True, fg="red")
    if len(tally.reasons) > SHOWN_FAILURES:
        rest = len(tally.reasons) - SHOWN_FAILURES
        typer.secho(f"and {rest} more; see the column 'error'", err=True, fg="red")
    return SOME_FAILED if tally.failed else OK
