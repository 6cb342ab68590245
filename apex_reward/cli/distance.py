"""`apex-reward distance`: how far a set of songs lies from a reference set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from apex_reward.cli.common import SCORE, add_command, print_table, progress_bar, show_failures
from apex_reward.cli.rewards import DeviceOption
from apex_reward.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from apex_reward.rewards.protocol import RewardModel

# The smallest sets that the unbiased form takes.
UNBIASED_SONGS = 10
DEFAULT_MODELS = {"mert": "apex-tiny", "muq": "songeval", "clap": "clap"}


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, distance, panel=SCORE)


def distance(
    songs: Annotated[list[str], typer.Argument(help="Files, folders, globs or lists.")],
    reference: Annotated[
        list[str], typer.Option(metavar="SONGS", help="The set to compare with; may be repeated.")
    ],
    embedding: Annotated[
        Literal["mert", "muq", "clap"], typer.Option(help="What hears the songs.")
    ] = "mert",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model whose encoder that is.",
            show_default="apex-tiny, songeval, clap",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    device: DeviceOption = None,
) -> int:
    """Measure the Frechet distance between two sets of songs.

    It falls towards 0 as the sets sound alike, and is given without its small-sample bias too. A
    reward that rises together with it is being gamed.

    Example: apex-reward distance made/ --reference real/ --embedding muq
    """
    from apex_reward.files.tables import write_text
    from apex_reward.rewards.distance import frechet_distance
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.scoring import find_audio

    paths = [find_audio(songs), find_audio(reference)]
    name = model or DEFAULT_MODELS[embedding]
    hears = load_reward_model(name, device=device)
    (a, bad_a), (b, bad_b) = (_embedded(hears, found) for found in paths)
    failed = [*bad_a, *bad_b]
    code = show_failures([f"{path}: {reason}" for path, reason in failed])
    for what, found in (("songs", a), ("reference", b)):
        if len(found) < 2:
            raise DataError(f"{what}: {len(found)} could be heard; a distance needs at least 2")
    enough = min(len(a), len(b)) >= UNBIASED_SONGS
    figures = {
        "embedding": embedding,
        "model": name,
        "songs": len(a),
        "reference": len(b),
        "failed": len(failed),
        "distance": frechet_distance(a, b),
        "distance_unbiased": frechet_distance(a, b, unbiased=True) if enough else None,
    }
    print_table("Frechet distance", list(figures), [list(figures.values())])
    if not enough:
        typer.echo(f"The unbiased distance needs {UNBIASED_SONGS} songs in each set.", err=True)
    if output is not None:
        write_text(output, json.dumps(figures, indent=2) + "\n")
    return code


def _embedded(model: RewardModel, paths: list[str]) -> tuple[Tensor, list[tuple[str, str]]]:
    """Embeddings (N, W) of the songs that can be heard; path and reason of the others."""
    import torch

    from apex_reward.audio.decoding import decode_songs
    from apex_reward.rewards.engine import run_songs
    from apex_reward.rewards.load import default_workers
    from apex_reward.rewards.panel import parts_of
    from apex_reward.rewards.reward import decode_settings_of

    parts = parts_of(model)
    found, failed = [], []
    with progress_bar() as progress:
        task = progress.add_task("listening", total=len(paths))
        songs = decode_songs(paths, decode_settings_of(parts), default_workers())
        for result in run_songs(parts, songs):
            progress.advance(task)
            if result.error is not None:
                failed.append((result.path, result.error))
                continue
            vector = parts.embeddings(result.features)
            vector = result.features[0] if vector is None else vector
            found.append(vector.detach().reshape(-1).float().cpu())
    return (torch.stack(found) if found else torch.zeros(0, 1)), failed
