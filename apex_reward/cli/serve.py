"""`apex-reward serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apex_reward.cli.common import INTERRUPTED, OK, SCORE, add_command, show
from apex_reward.cli.rewards import RewardOptions, RunOptions, build_reward
from apex_reward.errors import UsageError
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from fastapi import FastAPI

    from apex_reward.serve.settings import ServeSettings


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, serve, panel=SCORE)


@dataclass(frozen=True)
class LimitOptions:
    """Limits.

    Args:
        max_songs: songs of one request.
        max_seconds: length of a song.
        max_queue: songs that wait; further songs are refused.
        max_wait: longest time that a song waits for others to share its batch.
    """

    max_songs: Annotated[int, (1, None)] = 64
    max_seconds: Annotated[float, "SECONDS", (1, None)] = 600.0
    max_queue: Annotated[int, (1, None)] = 256
    max_wait: Annotated[float, "SECONDS", (0, None)] = 0.02


def serve(
    asked: RewardOptions,
    running: RunOptions,
    limits: LimitOptions,
    host: Annotated[str, "ADDRESS"] = "127.0.0.1",
    port: Annotated[int, (1, 65535)] = 8765,
    token_file: Annotated[Path, "FILE"] | None = None,
    audio_root: Annotated[Path, "FOLDER"] | None = None,
    replicas: Annotated[int, (1, None)] = 1,
    write_config: bool = False,
) -> int:
    """Serve a reward over HTTP; requests of many clients share encoder batches.

    Example: apex-reward serve --model apex-tiny --mix aesthetics --port 8765

    Args:
        host: address of the server.
        port: port of the server.
        token_file: file with the bearer token that requests must carry.
        audio_root: folder of the paths that requests may name.
        replicas: copies on Ray Serve, on the cluster of RAY_ADDRESS or on this machine.
        write_config: print a config file for `serve deploy`.
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
    batches = BatchLimits(
        wait=limits.max_wait, queue=limits.max_queue, seconds=limits.max_seconds,
        workers=max(1, running.processes),
    )  # fmt: skip
    token, root = (str(path.resolve()) if path else None for path in (token_file, audio_root))
    settings = ServeSettings(batches, songs=limits.max_songs, token_file=token, audio_root=root)
    settings.token()
    if write_config or replicas > 1 or os.environ.get("RAY_ADDRESS"):
        _on_ray(asked, running, settings, replicas, (host, port), write_config)
        return OK
    app = make_app(build_reward(asked, running), settings)
    show(f"serving on http://{host}:{port}; stop with Ctrl-C")
    # Without the lifespan a second Ctrl-C in uvicorn ends without a traceback; `_ended` closes.
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="off")
    return _ended(app)


def _ended(app: FastAPI) -> int:
    """Answer the accepted songs, or print the number of the others."""
    batcher = app.state.batcher
    stopped = f"stopped after {counted(batcher.figures.songs, 'song')}"
    left = batcher.figures.dropped + batcher.waiting
    if not left:
        batcher.close()
        show(f"{stopped}; every accepted song is answered")
        return OK
    batcher.abandon()  # a second Ctrl-C
    show(f"{stopped}; {left} more have no answer; send them again")
    return INTERRUPTED


def _on_ray(
    asked: RewardOptions, running: RunOptions, settings: ServeSettings, replicas: int,
    address: tuple[str, int], only_config: bool,
) -> None:  # fmt: skip
    """Replicas on Ray Serve, or the file that deploys them."""
    from apex_reward.serve.replicas import replica_values, run_replicas, serve_config

    # The models load here only to find mistakes before the replicas start.
    judge = build_reward(asked, replace(running, device="cpu"))
    loading = {
        "device": running.device,
        "dtype": asked.dtype,
        "segment_tail": asked.segment_tail,
        "encoder": asked.encoder,
    }
    values = replica_values(judge, loading, settings, replicas)
    if only_config:
        typer.echo(serve_config(values, *address), nl=False)
        return
    show(f"serving {replicas} replicas on http://{address[0]}:{address[1]}; stop with Ctrl-C")
    run_replicas(values, *address)
