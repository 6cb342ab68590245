"""`apex-reward serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli.common import INTERRUPTED, show
from apex_reward.cli.rewards import RewardOptions, RunOptions, build_reward
from apex_reward.errors import UsageError
from apex_reward.report.cells import counted


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
    workers = max(1, running.processes)
    batches = BatchLimits(
        wait=limits.max_wait, queue=limits.max_queue, seconds=limits.max_seconds, workers=workers
    )
    token, root = (str(path.resolve()) if path else None for path in (token_file, audio_root))
    settings = ServeSettings(batches, songs=limits.max_songs, token_file=token, audio_root=root)
    settings.token()
    if write_config or replicas > 1 or os.environ.get("RAY_ADDRESS"):
        from apex_reward.serve.replicas import replica_values, run_replicas, serve_config

        # The models load here only to find mistakes before the replicas start.
        judge = build_reward(asked, replace(running, device="cpu"))
        loading = {name: getattr(asked, name) for name in ("dtype", "segment_tail", "encoder")}
        loading["device"] = running.device
        values = replica_values(judge, loading, settings, replicas)
        if write_config:
            typer.echo(serve_config(values, host, port), nl=False)
        else:
            show(f"serving {replicas} replicas on http://{host}:{port}; stop with Ctrl-C")
            run_replicas(values, host, port)
        return 0
    app = make_app(build_reward(asked, running), settings)
    show(f"serving on http://{host}:{port}; stop with Ctrl-C")
    # Without the lifespan a second Ctrl-C in uvicorn ends without a traceback.
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="off")
    batcher = app.state.batcher
    stopped = f"stopped after {counted(batcher.figures.songs, 'song')}"
    left = batcher.figures.dropped + batcher.waiting
    if not left:
        batcher.close()
        show(f"{stopped}; every accepted song is answered")
        return 0
    batcher.abandon()  # a second Ctrl-C
    show(f"{stopped}; {left} more have no answer; send them again")
    return INTERRUPTED
