"""Where a policy's songs go: their distance from reference songs, their spread within a prompt.

A reward that rises together with the distance is being gamed; a spread that falls to zero is a
policy that plays one song.

Shape key: N = songs, M = reference songs, W = width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import AudioError
from apex_reward.model.encode import Prompts
from apex_reward.rewards.distance import embedding_spread, frechet_distance
from apex_reward.rewards.engine import EngineSettings
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.songs import cells_of


def song_embeddings(
    reward: Reward,
    songs: Sequence[Any],
    prompts: Prompts = None,
    *,
    sample_rate: int | None = None,
    workers: int = 0,
    failed: list[str] | None = None,
    on_song: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embeddings (N, W) of songs: the reward model's, of a panel the first encoder's.

    Args:
        songs, prompts, sample_rate, workers: as `Reward.judge` takes them. The embeddings do not
            depend on the prompts, so none are needed.
        failed: gets a line for each song that cannot be heard, which is left out then.
        on_song: called after every song.

    Raises:
        AudioError: a song that cannot be heard where there is no `failed`, or no member that has
            an encoder.
    """
    if not reward.parts.encoders:
        raise AudioError(f"{reward.model.name} has no encoder, so its songs have no embeddings")
    if prompts is None and reward.model.reads_text:
        prompts = ["music"] * len(songs)
    settings = EngineSettings(reward.loudness, batch_segments=reward.batch_segments, scored=False)
    vectors = []
    heard = reward.results(
        cells_of(songs), prompts, sample_rate, workers=workers, settings=settings
    )
    for result in heard:
        on_song()
        if result.vector is not None:
            vectors.append(result.vector)
        elif failed is None:
            raise AudioError(f"{result.path}: {result.error}")
        else:
            failed.append(f"{result.path}: {result.error}")
    return torch.stack(vectors) if vectors else torch.zeros(0, 1)


def drift_figures(
    embeddings: Tensor, prompts: Sequence[Hashable] | None, reference: Tensor | None
) -> dict[str, float]:
    """What to log of songs (N, W) beside their reward.

    Args:
        embeddings: as `song_embeddings` gives them.
        prompts: N names; songs of one prompt are compared. None: all are of one.
        reference: (M, W) embeddings of the songs that they should be like; None: no distance.

    Returns:
        `embedding_spread` (mean cosine distance of two songs of one prompt) where a prompt has two
        songs, `distance` (Frechet, `frechet_distance`; biased upwards by few songs, so compare it
        between batches of one size) where there are two songs and a reference.
    """
    found = {}
    between = embedding_spread(embeddings, prompts)
    if not math.isnan(between):
        found["embedding_spread"] = between
    if reference is not None and len(embeddings) >= 2:
        found["distance"] = frechet_distance(embeddings, reference.to(embeddings.device))
    return found
