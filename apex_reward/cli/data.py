"""`apex-reward prepare` and `apex-reward extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, SOME_FAILED, print_table, progress_bar, reports_errors

SHOWN_FAILURES = 10
MERT = "m-a-p/MERT-v1-95M"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the main application."""
    for command in (prepare, extract):
        app.command()(reports_errors(command))


def prepare(
    metadata: Annotated[list[Path], typer.Argument(help="Tables: .csv, .jsonl or .parquet.")],
    output: Annotated[Path, typer.Option(help="Folder for manifest, report and plots.")],
    preset: Annotated[
        str, typer.Option(help="Column names: suno, udio, plain, or auto to find out.")
    ] = "auto",
    id_column: Annotated[str | None, typer.Option(help="Unique name of a song.")] = None,
    path_column: Annotated[str | None, typer.Option(help="Audio file.")] = None,
    platform_column: Annotated[str | None, typer.Option(help="Where a song is from.")] = None,
    streams_column: Annotated[str | None, typer.Option(help="Times played.")] = None,
    likes_column: Annotated[str | None, typer.Option(help="Likes or upvotes.")] = None,
    released_column: Annotated[str | None, typer.Option(help="Date of release.")] = None,
    audio_dir: Annotated[
        Path | None, typer.Option(help="Check the audio here: unreadable files, duplicates.")
    ] = None,
    per_platform: Annotated[
        bool, typer.Option("--per-platform", help="Percentiles within each platform.")
    ] = False,
    balance: Annotated[
        bool, typer.Option(help="Drop songs until platforms are of one size.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of balance and split.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read audio.")] = 0,
) -> int:
    """Turn play counts into popularity scores, filtered, balanced and split."""
    from apex_reward.data.metadata import read_metadata
    from apex_reward.data.prepare import PrepareSettings
    from apex_reward.data.prepare import prepare as run

    columns = {
        "audio_id": id_column,
        "path": path_column,
        "platform": platform_column,
        "streams": streams_column,
        "likes": likes_column,
        "released": released_column,
    }
    named = {field: column for field, column in columns.items() if column is not None}
    songs = [song for path in metadata for song in read_metadata(path, preset, named)]
    settings = PrepareSettings(audio_dir, balance, per_platform, seed, workers)
    report = run(songs, settings, output)
    rows: list[tuple[str, object]] = [("rows in", report["rows_in"])]
    rows += [(f"dropped: {reason}", count) for reason, count in report["dropped"].items()]
    rows += [("kept", report["kept"])]
    rows += [(f"date {problem}", count) for problem, count in report["dates_not_used"].items()]
    rows += [(f"  {split}", count) for split, count in report["splits"].items()]
    print_table(str(output / "manifest.parquet"), ["step", "songs"], rows)
    return OK


def extract(
    manifest: Annotated[Path, typer.Argument(help="From prepare: .parquet, .csv or .jsonl.")],
    audio_dir: Annotated[Path, typer.Option(help="Folder the manifest's paths are relative to.")],
    output: Annotated[Path, typer.Option(help="Folder for train/, val/, test/ and failures.")],
    encoder: Annotated[
        str, typer.Option(help="Hub id or folder of the encoder, or apex-tiny.")
    ] = MERT,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Decoding processes (local) or actors (ray).")
    ] = None,
    engine: given.EngineOption = given.EngineName.local,
    batch_segments: Annotated[
        int | None, typer.Option(min=1, help="Segments per encoder batch.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    songeval: Annotated[
        Path | None, typer.Option("--songeval", help="Aesthetic labels per song to store.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Gives the aesthetic labels of songs without any: songeval, songeval:FOLDER, "
            "another model with these heads, or package.module:callable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run stopped.")
    ] = False,
) -> int:
    """Run the encoder over a manifest's songs and store their embeddings as shards."""
    from apex_reward.data.extract import ExtractSettings
    from apex_reward.data.extract import extract as run
    from apex_reward.data.manifest import read_manifest
    from apex_reward.data.teacher import read_teacher

    songs = read_manifest(manifest, read_teacher(songeval) if songeval else None)
    who, count = given.engine_of(engine, workers, device)
    settings = ExtractSettings(audio_dir, encoder, count, batch_segments, device, teacher)
    with progress_bar() as progress:
        bar = progress.add_task("extract", total=len(songs))
        failed = run(
            songs, settings, output, engine=who, resume=resume,
            on_song=lambda: progress.advance(bar),
        )  # fmt: skip
    if not who.share.first:
        return OK
    typer.echo(f"{len(songs) - len(failed)} songs in {output}, {len(failed)} failed")
    for row in failed[:SHOWN_FAILURES]:
        typer.secho(f"failed: {row['path']}: {row['error']}", err=True, fg="yellow")
    return SOME_FAILED if failed else OK
