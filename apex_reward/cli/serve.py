"""`apex-reward serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import INTERRUPTED, OK, SCORE, add_command
from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from apex_reward.serve.batching import BatchLimits
    from apex_reward.serve.settings import ServeSettings

_limit = partial(typer.Option, rich_help_panel="What it takes")


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, serve, panel=SCORE)


@dataclass(frozen=True)
class LimitOptions:
    """What a server takes."""

    max_songs: Annotated[int, _limit(min=1, metavar="N", help="Songs of one request.")] = 64
    max_seconds: Annotated[float, _limit(min=1, metavar="SECONDS", help="Length of a song.")] = (
        600.0
    )
    max_queue: Annotated[int, _limit(min=1, metavar="N", help="Songs that wait.")] = 256
    max_wait: Annotated[
        float,
        _limit(min=0, metavar="SECONDS", help="How long a song waits for others."),
    ] = 0.02

    def batch(self, workers: int) -> BatchLimits:
        """Of the batches that requests share."""
        from apex_reward.serve.batching import BatchLimits

        return BatchLimits(
            wait=self.max_wait, queue=self.max_queue, seconds=self.max_seconds, workers=workers
        )


def serve(
    asked: given.RewardOptions,
    running: given.RunOptions,
    limits: LimitOptions,
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
    from apex_reward.serve.settings import ServeSettings

    if audio_root is not None and not audio_root.is_dir():
        raise UsageError(f"--audio-root {audio_root} is not a folder")
    settings = ServeSettings(
        limits.batch(max(1, running.processes)), songs=limits.max_songs,
        token_file=_whole(token_file), audio_root=_whole(audio_root),
    )  # fmt: skip
    settings.token()
    if write_config or replicas > 1 or os.environ.get("RAY_ADDRESS"):
        _on_ray(asked, running, settings, replicas, (host, port), write_config)
        return OK
    app = make_app(given.build_reward(asked, running), settings)
    typer.echo(f"serving on http://{host}:{port}; stop with Ctrl-C", err=True)
    # The lifespan ends below: at a second Ctrl-C uvicorn would break it off with a traceback.
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="off")
    return _ended(app)


def _ended(app: FastAPI) -> int:
    """Answer what was accepted, or say how much was not."""
    batcher = app.state.batcher
    said = f"stopped after {batcher.figures.songs} songs"
    left = batcher.figures.dropped + batcher.waiting
    if not left:
        batcher.close()
        typer.echo(f"{said}; all that was accepted is answered", err=True)
        return OK
    batcher.abandon()  # a second Ctrl-C
    typer.echo(f"{said}; {left} more have no answer, ask for them again", err=True)
    return INTERRUPTED


def _on_ray(
    asked: given.RewardOptions,
    running: given.RunOptions,
    settings: ServeSettings,
    replicas: int,
    address: tuple[str, int],
    only_config: bool,
) -> None:
    """Replicas on Ray Serve, or the file that deploys them."""
    from apex_reward.serve.replicas import replica_values, run_replicas, serve_config

    # The models are loaded here for their mistakes alone.
    judge = given.build_reward(asked, replace(running, device="cpu"))
    loading = {
        "device": running.device,
        "dtype": asked.dtype,
        "segment_tail": asked.segment_tail,
        "encoder": asked.encoder,
    }
    values = replica_values(judge, loading, settings, replicas)
    host, port = address
    if only_config:
        typer.echo(serve_config(values, host, port), nl=False)
        return
    typer.echo(f"serving {replicas} replicas on http://{host}:{port}; stop with Ctrl-C", err=True)
    run_replicas(values, host, port)


def _whole(path: Path | None) -> str | None:
    """A path that means the same from any folder."""
    return None if path is None else str(path.resolve())
