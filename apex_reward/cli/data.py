"""`apex-reward prepare` and `apex-reward extract`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli import common
from apex_reward.cli.rewards import EngineOptions, decoding_processes
from apex_reward.data.settings import ColumnOptions, PrepareSettings

MERT = "m-a-p/MERT-v1-95M"


def prepare(
    metadata: list[Path],
    /,
    columns: ColumnOptions,
    settings: PrepareSettings,
    output: common.Folder,
    workers: Annotated[int | None, (0, None)] = None,
) -> None:
    """Turn play counts into popularity scores, filtered, balanced and split.

    Of the kept songs 85% go to train, 5% to val and 10% to test.

    Example: apex-reward prepare suno.csv udio.csv --audio-dir audio --output prepared

    Args:
        metadata: Tables: .csv, .jsonl or .parquet.
        output: Folder for the manifest, the report and the plots.
        workers: Decoding processes; with 0, this process decodes. None: chosen by the cores.
    """
    import pandas as pd

    from apex_reward.data.metadata import read_metadata
    from apex_reward.data.prepare import prepare as run
    from apex_reward.files.tables import check_output

    for name in ("manifest.parquet", "report.json"):
        check_output(output / name, metadata)
    songs = pd.concat([read_metadata(path, columns.preset, columns.named) for path in metadata])
    with common.progress() as update:
        on_song = functools.partial(update, "songs")
        report = run(songs, settings, output, decoding_processes(workers), on_song)
    rows: list[tuple[str, object]] = [("rows in", report["rows_in"])]
    rows += [(f"dropped: {reason}", count) for reason, count in report["dropped"].items()]
    rows += [("kept", report["kept"])]
    rows += [(f"date {problem}", count) for problem, count in report["dates_not_used"].items()]
    rows += [(f"  {split}", count) for split, count in report["splits"].items()]
    common.print_table(str(output / "manifest.parquet"), ["step", "songs"], rows)
    common.show_warnings(report)


def extract(
    manifest: Path,
    /,
    running: EngineOptions,
    audio_dir: Annotated[Path, "FOLDER"],
    output: common.Folder,
    encoder: Annotated[str, "FOLDER"] = MERT,
    songeval: Annotated[Path | None, "FILE"] = None,
    teacher: Annotated[str | None, "MODEL"] = None,
    resume: bool = False,
) -> int:
    """Run the encoder over a manifest's songs and store their embeddings as shards.

    Example: apex-reward extract prepared/manifest.parquet --audio-dir audio --output shards

    Args:
        manifest: Table that prepare wrote, or another: .parquet, .csv or .jsonl.
        audio_dir: Folder that the manifest's paths are relative to.
        output: Folder for train/, val/, test/ and the failures.
        encoder: Folder or hub id of the encoder, or apex-tiny.
        songeval: Table of aesthetic labels per song (.csv, .jsonl or .parquet).
        teacher: Model that labels songs without aesthetic labels: songeval, songeval:FOLDER,
            another model with these heads, or package.module:callable.
        resume: Continue a run that was stopped.
    """
    from apex_reward.data.extract import ExtractSettings, read_manifest
    from apex_reward.data.extract import extract as run
    from apex_reward.data.teacher import read_teacher

    songs = read_manifest(manifest, read_teacher(songeval) if songeval else None)
    engine, workers = running.engine_and_workers()
    settings = ExtractSettings(
        audio_dir, encoder, workers, running.batch_segments, running.device, teacher
    )
    with common.resumable(lambda: _shards(output)), common.counting("extract", len(songs)) as step:
        failed = run(songs, settings, output, engine=engine, resume=resume, on_song=step)
    if not engine.share.first:
        return 0
    typer.echo(f"{len(songs) - len(failed)} songs in {output}, {len(failed)} failed")
    reasons = [f"failed: {row['path']}: {row['error']}" for row in failed]
    return engine.ended(common.show_failures(reasons))


def _shards(output: Path) -> str:
    """What an interrupted run has kept."""
    count = len(list(output.glob("*/*.parquet")))
    return f"{count} finished shards, in {output}" if count else ""
