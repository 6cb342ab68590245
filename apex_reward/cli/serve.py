"""`apex-reward serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apex_reward.cli import rewards as given
from apex_reward.cli.common import OK, reports_errors
from apex_reward.errors import UsageError

LIMITS = "What it takes"


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    app.command("serve")(reports_errors(serve))


def serve(
    model: given.ModelOption = None,
    reward: given.RewardOption = None,
    mix: given.MixOption = None,
    loudness: given.LoudnessOption = None,
    guards: given.GuardsOption = None,
    caution: given.CautionOption = None,
    encoder: given.EncoderOption = None,
    segment_tail: given.TailOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that requests must carry.")
    ] = None,
    audio_root: Annotated[
        Path | None, typer.Option(help="Folder below which requests may name paths.")
    ] = None,
    max_songs: Annotated[
        int, typer.Option(min=1, help="Songs of one request.", rich_help_panel=LIMITS)
    ] = 64,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Length of a song.", rich_help_panel=LIMITS)
    ] = 600.0,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Songs that wait.", rich_help_panel=LIMITS)
    ] = 256,
    max_wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds that a song waits for others.", rich_help_panel=LIMITS),
    ] = 0.02,
    batch_segments: given.BatchOption = None,
    workers: given.WorkersOption = None,
    device: given.DeviceOption = None,
    dtype: given.DTypeOption = given.DType.float32,
) -> int:
    """Serve a reward over HTTP; requests of many clients share encoder batches.

    Example: apex-reward serve --model apex-tiny --mix aesthetics --port 8765
    """
    try:
        import uvicorn

        from apex_reward.serve.app import ServeSettings, make_app
    except ImportError as error:
        raise UsageError(f"serving needs `pip install 'apex-reward[serve]'` ({error})") from error
    from apex_reward.rewards.load import default_workers
    from apex_reward.serve.batching import BatchLimits

    token = _token(token_file)
    if audio_root is not None and not audio_root.is_dir():
        raise UsageError(f"--audio-root {audio_root} is not a folder")
    judge = given.build_reward(
        given.RewardOptions(model, reward, mix, loudness, guards, caution, encoder, segment_tail,
                      batch_segments, device, dtype)
    )  # fmt: skip
    judge.check_single()
    limits = BatchLimits(
        wait=max_wait, queue=max_queue, seconds=max_seconds, workers=workers or default_workers()
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
