"""`apex-reward prepare` and `apex-reward extract`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from apex_reward.cli.common import (
    OK,
    TRAINING,
    add_command,
    print_table,
    progress_bar,
    progress_updates,
    resumable,
    show_failures,
)
from apex_reward.cli.rewards import EngineOptions, WorkersOption, decoding_processes
from apex_reward.cli.training import LABELS, ResumeOption, TeacherFileOption

MERT = "m-a-p/MERT-v1-95M"
_column = partial(typer.Option, metavar="NAME", rich_help_panel="Names of columns")


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    for command in (prepare, extract):
        add_command(app, command, panel=TRAINING)


@dataclass(frozen=True)
class ColumnOptions:
    """What the columns of the metadata are called, where the preset does not say."""

    id_column: Annotated[str | None, _column(help="Unique name of a song.")] = None
    path_column: Annotated[str | None, _column(help="Audio file.")] = None
    platform_column: Annotated[str | None, _column(help="Where a song is from.")] = None
    streams_column: Annotated[str | None, _column(help="Times played.")] = None
    likes_column: Annotated[str | None, _column(help="Likes or upvotes.")] = None
    released_column: Annotated[str | None, _column(help="Date of release.")] = None

    @property
    def named(self) -> dict[str, str]:
        """Field to column, where one was given."""
        fields = {name.removesuffix("_column"): column for name, column in vars(self).items()}
        fields["audio_id"] = fields.pop("id")
        return {field: column for field, column in fields.items() if column is not None}


def prepare(
    metadata: Annotated[list[Path], typer.Argument(help="Tables: .csv, .jsonl or .parquet.")],
    columns: ColumnOptions,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For manifest, report and plots.")],
    preset: Annotated[
        Literal["auto", "suno", "udio", "plain"], typer.Option(help="Whose column names.")
    ] = "auto",
    audio_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Check the audio here: unreadable files, duplicates."),
    ] = None,
    per_platform: Annotated[
        bool, typer.Option("--per-platform", help="Percentiles within each platform.")
    ] = False,
    balance: Annotated[
        bool, typer.Option(help="Drop songs until platforms are of one size.")
    ] = True,
    seed: Annotated[int, typer.Option(metavar="N", help="Of balance and split.")] = 0,
    workers: WorkersOption = None,
) -> int:
    """Turn play counts into popularity scores, filtered, balanced and split.

    Example: apex-reward prepare suno.csv udio.csv --audio-dir audio --output prepared
    """
    from apex_reward.data.metadata import read_metadata
    from apex_reward.data.prepare import PrepareSettings
    from apex_reward.data.prepare import prepare as run
    from apex_reward.files.tables import check_output

    for name in ("manifest.parquet", "report.json"):
        check_output(output / name, metadata)
    songs = [song for path in metadata for song in read_metadata(path, preset, columns.named)]
    processes = decoding_processes(workers)
    settings = PrepareSettings(audio_dir, balance, per_platform, seed, processes)
    with progress_updates() as update:
        report = run(songs, settings, output, lambda done, total: update("songs", done, total, ""))
    rows: list[tuple[str, object]] = [("rows in", report["rows_in"])]
    rows += [(f"dropped: {reason}", count) for reason, count in report["dropped"].items()]
    rows += [("kept", report["kept"])]
    rows += [(f"date {problem}", count) for problem, count in report["dates_not_used"].items()]
    rows += [(f"  {split}", count) for split, count in report["splits"].items()]
    print_table(str(output / "manifest.parquet"), ["step", "songs"], rows)
    return OK


def extract(
    manifest: Annotated[Path, typer.Argument(help="From prepare: .parquet, .csv or .jsonl.")],
    running: EngineOptions,
    audio_dir: Annotated[
        Path, typer.Option(metavar="FOLDER", help="What the manifest's paths are relative to.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For train/, val/, test/ and failures.")
    ],
    encoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder or hub id of the encoder, or apex-tiny.")
    ] = MERT,
    teacher_file: TeacherFileOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Gives the aesthetic labels of songs without any: songeval, songeval:FOLDER, "
            "another model with these heads, or package.module:callable.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    resume: ResumeOption = False,
) -> int:
    """Run the encoder over a manifest's songs and store their embeddings as shards.

    Example: apex-reward extract prepared/manifest.parquet --audio-dir audio --output shards
    """
    from apex_reward.data.extract import ExtractSettings
    from apex_reward.data.extract import extract as run
    from apex_reward.data.manifest import read_manifest
    from apex_reward.data.teacher import read_teacher

    songs = read_manifest(manifest, read_teacher(teacher_file) if teacher_file else None)
    engine, workers = running.engine_and_workers()
    settings = ExtractSettings(
        audio_dir, encoder, workers, running.batch_segments, running.device, teacher
    )
    with resumable(lambda: _shards(output)), progress_bar() as progress:
        bar = progress.add_task("extract", total=len(songs))
        failed = run(
            songs, settings, output, engine=engine, resume=resume,
            on_song=lambda: progress.advance(bar),
        )  # fmt: skip
    if not engine.share.first:
        return OK
    typer.echo(f"{len(songs) - len(failed)} songs in {output}, {len(failed)} failed")
    reasons = [f"failed: {row['path']}: {row['error']}" for row in failed]
    return engine.ended(show_failures(reasons))


def _shards(output: Path) -> str:
    """What an interrupted run has kept."""
    count = len(list(output.glob("*/*.parquet")))
    return f"{count} finished shards, in {output}" if count else ""
