"""`apex-reward serve`."""

from __future__ import annotations

import os
from dataclasses import replace
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
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Copies on Ray Serve: on the cluster of RAY_ADDRESS, else on this machine.",
        ),
    ] = 1,
    write_config: Annotated[
        bool, typer.Option("--write-config", help="Print a config file for `serve deploy`.")
    ] = False,
) -> int:
    """Serve a reward over HTTP; requests of many clients share encoder batches.

    Example: apex-reward serve --model apex-tiny --mix aesthetics --port 8765
    """
    try:
        import uvicorn

        from apex_reward.serve.app import make_app
    except ImportError as error:
        raise UsageError(f"serving needs `pip install 'apex-reward[serve]'` ({error})") from error
    from apex_reward.serve.batching import BatchLimits
    from apex_reward.serve.settings import ServeSettings

    if audio_root is not None and not audio_root.is_dir():
        raise UsageError(f"--audio-root {audio_root} is not a folder")
    limits = BatchLimits(
        wait=max_wait, queue=max_queue, seconds=max_seconds, workers=max(1, running.processes)
    )
    settings = ServeSettings(
        limits, songs=max_songs, token_file=_whole(token_file), audio_root=_whole(audio_root)
    )
    settings.token()
    on_ray = write_config or replicas > 1 or bool(os.environ.get("RAY_ADDRESS"))
    # With replicas the models are loaded here for their mistakes alone.
    judge = given.build_reward(asked, replace(running, device="cpu") if on_ray else running)
    if not on_ray:
        app = make_app(judge, settings)
        typer.echo(f"serving on http://{host}:{port}; stop with Ctrl-C", err=True)
        uvicorn.run(app, host=host, port=port, log_level="warning")
        return OK
    from apex_reward.serve.replicas import replica_values, run_replicas, serve_config

    loading = {
        "device": running.device,
        "dtype": asked.dtype,
        "segment_tail": asked.segment_tail,
        "encoder": asked.encoder,
    }
    folder = Path() if asked.reward is None else asked.reward.parent
    values = replica_values(judge, loading, settings, replicas, folder)
    if write_config:
        typer.echo(serve_config(values, host, port), nl=False)
        return OK
    typer.echo(f"serving {replicas} replicas on http://{host}:{port}; stop with Ctrl-C", err=True)
    run_replicas(values, host, port)
    return OK


def _whole(path: Path | None) -> str | None:
    """A path that means the same from any folder."""
    return None if path is None else str(path.resolve())
