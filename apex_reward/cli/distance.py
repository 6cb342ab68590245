"""`apex-reward distance`: the distance of a set of songs from a reference set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from apex_reward.cli.common import (
    SCORE,
    File,
    add_command,
    print_table,
    progress_bar,
    show,
    show_failures,
)
from apex_reward.errors import DataError
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from torch import Tensor

    from apex_reward.rewards.protocol import RewardModel

UNBIASED_SONGS = 10
"""The unbiased form needs at least this many songs in each set."""
DEFAULT_MODELS = {"mert": "apex-tiny", "muq": "songeval", "clap": "clap"}


def register(app: typer.Typer) -> None:
    """Add this module's command to the main application."""
    add_command(app, distance, panel=SCORE)


def distance(
    songs: list[str],
    /,
    *,
    reference: Annotated[list[str], "SONGS"],
    embedding: Literal["mert", "muq", "clap"] = "mert",
    metric: Literal["frechet", "kernel"] = "frechet",
    model: Annotated[str | None, "MODEL", "-m"] = None,
    output: File | None = None,
    device: Annotated[str | None, "NAME"] = None,
    commercial: bool = False,
) -> int:
    """Measure the distance between two sets of songs, and how varied each set is.

    The distance falls towards 0 as the sets sound alike. The kernel distance is unbiased and may
    be negative; for the Frechet distance the table also has it without its small-sample bias. The
    diversity is the effective number of different songs. A reward that rises together with the
    distance is being gamed.

    Example: apex-reward distance made/ --reference real/ --embedding muq

    Args:
        songs: files, folders, globs or lists.
        reference: the set to compare with; repeat it for more.
        embedding: encoder of the songs.
        metric: the Frechet distance, or the kernel distance with the reference's median distance.
        model: model with that encoder. None: apex-tiny, songeval or clap.
        output: write the figures as JSON.
        device: cpu, cuda, cuda:1 or mps. None: a GPU if there is one.
        commercial: refuse a model whose licences do not clearly allow commercial use.
    """
    from apex_reward.files.tables import write_json
    from apex_reward.model.licences import check_commercial, licences_of
    from apex_reward.rewards.distance import (
        frechet_distance,
        kernel_bandwidth,
        kernel_distance,
        vendi_diversity,
    )
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.scoring import find_audio

    paths = [find_audio(songs), find_audio(reference)]
    name = model or DEFAULT_MODELS[embedding]
    encoder = load_reward_model(name, device=device)
    if commercial:
        check_commercial(licences_of([encoder]))
    (a, bad_a), (b, bad_b) = (_embedded(encoder, found) for found in paths)
    failed = [*bad_a, *bad_b]
    code = show_failures([f"{path}: {reason}" for path, reason in failed])
    for side, found in (("songs", a), ("reference", b)):
        if len(found) < 2:
            usable = counted(len(found), "readable file")
            raise DataError(f"{side}: {usable}; a distance needs at least 2")
    enough = min(len(a), len(b)) >= UNBIASED_SONGS
    width, kernel = kernel_bandwidth(b), metric == "kernel"
    unbiased = frechet_distance(a, b, unbiased=True) if enough and not kernel else None
    figures = {
        "embedding": embedding,
        "model": name,
        "metric": metric,
        "songs": len(a),
        "reference": len(b),
        "failed": len(failed),
        "distance": kernel_distance(a, b) if kernel else frechet_distance(a, b),
        **({"bandwidth": width} if kernel else {"distance_unbiased": unbiased}),
        "diversity": vendi_diversity(a, width),
        "diversity_reference": vendi_diversity(b, width),
    }
    print_table(f"{metric.capitalize()} distance", list(figures), [list(figures.values())])
    if not enough and not kernel:
        show(f"The unbiased distance needs {UNBIASED_SONGS} songs in each set.")
    if output is not None:
        write_json(output, figures)
    return code


def _embedded(model: RewardModel, paths: list[str]) -> tuple[Tensor, list[tuple[str, str]]]:
    """Embeddings (N, W) of the songs that decode; path and reason of the others."""
    import torch

    from apex_reward.audio.decoding import decode_songs
    from apex_reward.rewards.engine import EngineSettings, run_songs
    from apex_reward.rewards.load import default_workers
    from apex_reward.rewards.panel import members_of
    from apex_reward.rewards.reward import decode_settings_of

    members = members_of(model)
    found, failed = [], []
    with progress_bar() as progress:
        task = progress.add_task("encoding", total=len(paths))
        songs = decode_songs(paths, decode_settings_of(members), default_workers())
        for result in run_songs(members, songs, EngineSettings(scored=False)):
            progress.advance(task)
            if result.error is not None:
                failed.append((result.path, result.error))
                continue
            vector = members.embeddings(result.features)
            vector = result.features[0] if vector is None else vector
            found.append(vector.detach().reshape(-1).float().cpu())
    return (torch.stack(found) if found else torch.zeros(0, 1)), failed
