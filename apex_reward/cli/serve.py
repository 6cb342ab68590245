"""`apex-reward serve` and `apex-reward listen`: the commands that answer over HTTP."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from apex_reward.cli.common import INTERRUPTED, File, show
from apex_reward.cli.rewards import RewardOptions, RunOptions, build_reward
from apex_reward.errors import UsageError
from apex_reward.report.cells import counted
from apex_reward.serve.settings import ServeOptions, ServeSettings


def serve(
    asked: RewardOptions,
    running: RunOptions,
    requests: ServeOptions,
    host: Annotated[str, "ADDRESS"] = "127.0.0.1",
    port: Annotated[int, (1, 65535)] = 8765,
    replicas: Annotated[int, (1, None)] = 1,
    write_config: bool = False,
) -> int:
    """Serve a reward over HTTP; requests of many clients share encoder batches.

    Example: apex-reward serve --model apex-tiny --mix aesthetics --port 8765

    Args:
        host: address of the server.
        port: port of the server.
        replicas: copies on Ray Serve, on the cluster of RAY_ADDRESS or on this machine.
        write_config: print a config file for `serve deploy`.
    """
    uvicorn, make_app = _application("serve", "serving")
    if requests.audio_root is not None and not Path(requests.audio_root).is_dir():
        raise UsageError(f"--audio-root {requests.audio_root} is not a folder")
    settings = ServeSettings(**vars(requests), workers=max(1, running.processes))
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


@dataclass(frozen=True)
class QuestionOptions:
    """Votes.

    Args:
        seed: random seed of the order and the sides.
        order: `informative` asks first what the votes so far leave open.
        min_seconds: listening time of each song before a vote counts.
    """

    seed: int = 0
    order: Literal["random", "informative"] = "random"
    min_seconds: Annotated[float, "SECONDS", (0, None)] = 3.0


def listen(
    source: Annotated[Path | None, "PAIRS|BATTLES|FOLDER"] = None,
    /,
    *,
    asked: RewardOptions,
    running: RunOptions,
    questions: QuestionOptions,
    output: File = Path("votes.jsonl"),
    votes: bool = True,
    port: Annotated[int, (1, 65535)] = 7860,
) -> None:
    """Try songs, compare two, and vote blind on a local page.

    Example: apex-reward listen pairs/pairs.jsonl --output votes.jsonl

    Args:
        source: a table of pairs or battles, or a folder with a sub-folder per system. None: songs
            are dropped on the pages.
        output: votes (.jsonl). New votes are added to an existing file.
        votes: vote blind, or compare openly by name.
        port: port of the page.
    """
    uvicorn, make_app = _application("listen", "listening")
    from apex_reward.listen.session import Session
    from apex_reward.listen.sources import read_comparisons

    if output.suffix.lower() != ".jsonl":
        raise UsageError(f"--output {output}: votes are written as .jsonl")
    comparisons = [] if source is None else read_comparisons(source)
    session = None
    if comparisons and votes:
        session = Session(comparisons, output, **vars(questions))
    # Without a source the pages try songs, which needs a model.
    judge = build_reward(asked, running) if asked.given or source is None else None
    app = make_app(session, reward=judge, comparisons=() if session else comparisons)
    goes = f"; votes go to {output}" if session else ""
    show(f"listen on http://127.0.0.1:{port}{goes}; stop with Ctrl-C")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    for reason in session.unreadable.values() if session else ():
        show(f"not asked: {reason}")


def _application(extra: str, doing: str) -> tuple[Any, Any]:
    """uvicorn, and what makes the application of an extra.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        app = importlib.import_module(f"apex_reward.{extra}.app")
        return importlib.import_module("uvicorn"), app.make_app
    except ImportError as error:
        raise UsageError(f"{doing} needs `pip install 'apex-reward[{extra}]'` ({error})") from error
