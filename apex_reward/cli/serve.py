"""`apex-reward serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, SCORE, add_command
from apex_reward.errors import UsageError

_limit = partial(typer.Option, rich_help_panel="What it takes")


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, serve, panel=SCORE)


def serve(
    asked: given.RewardOptions,
    running: given.RunOptions,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.")
    ] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the bearer token that requests must carry."),
    ] = None,
    audio_root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder below which requests may name paths."),
    ] = None,
    max_songs: Annotated[int, _limit(min=1, metavar="N", help="Songs of one request.")] = 64,
    max_seconds: Annotated[
        float, _limit(min=1, metavar="SECONDS", help="Length of a song.")
    ] = 600.0,
    max_queue: Annotated[int, _limit(min=1, metavar="N", help="Songs that wait.")] = 256,
    max_wait: Annotated[
        float,
        _limit(min=0, metavar="SECONDS", help="How long a song waits for others."),
    ] = 0.02,
) -> int:
    """Serve a reward over HTTP; requests of many clients share encoder batches.

    Example: apex-reward serve --model apex-tiny --mix aesthetics --port 8765
    """
    try:
        import uvicorn

        from apex_reward.serve.app import ServeSettings, make_app
    except ImportError as error:
        raise UsageError(f"serving needs `pip install 'apex-reward[serve]'` ({error})") from error
    from apex_reward.serve.batching import BatchLimits

    token = _token(token_file)
    if audio_root is not None and not audio_root.is_dir():
        raise UsageError(f"--audio-root {audio_root} is not a folder")
    judge = given.build_reward(asked, running)
    judge.check_single()
    limits = BatchLimits(
        wait=max_wait, queue=max_queue, seconds=max_seconds, workers=max(1, running.processes)
    )
    settings = ServeSettings(limits, songs=max_songs, token=token, audio_root=audio_root)
    typer.echo(f"serving on http://{host}:{port}; stop with Ctrl-C", err=True)
    uvicorn.run(make_app(judge, settings), host=host, port=port, log_level="warning")
    return OK


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"--token-file {file} cannot be read: {error.strerror}") from error
    if not token:
        raise UsageError(f"--token-file {file} is empty")
    return token
