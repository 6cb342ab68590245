"""A synthetic data set in the published shard layout, with a signal of known strength.

Every song has a hidden vector u (W standard normals); its segments' embeddings are u plus noise.
Head h hears one direction of u: latent = rho_h * (direction . u) + sqrt(1 - rho_h^2) * noise, so
the best possible Spearman correlation is (6 / pi) asin(rho_h / 2) (bivariate normal), a little
less for embeddings that carry segment noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apex_reward.data.shards import EmbeddingSource, list_column
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import LayerPooling
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS

WIDTH = 32
# Strength of the signal per head; the rest is noise no model can predict.
RHO = {
    "score_streams": 0.8,
    "score_likes": 0.8,
    "coherence": 0.95,
    "musicality": 0.9,
    "memorability": 0.8,
    "clarity": 0.65,
    "naturalness": 0.4,
}
SEGMENT_NOISE = 0.5
AESTHETIC_SPREAD = 0.6
SONGS = {"train": 1500, "val": 200, "test": 500}


def small_source(width: int = WIDTH) -> EmbeddingSource:
    """A source with small hidden layers, so that tests train in seconds."""
    encoder = {
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
    }
    config = ApexConfig(encoder=encoder, trunk_widths=(48, 24), head_widths=(16, 8))
    return EmbeddingSource.of(config, LayerPooling())


def reachable_spearman(head: str, songs: int, directions: int = 4 * WIDTH) -> float:
    """What a predictor fitted to that many songs can be asked to reach on `head`.

    The correlation r of label and embedding (a mean of two segments) shrinks by the noise that
    fitting brings in, (1 - r^2) directions / songs for a linear fit; a network is allowed four
    times the directions of a linear one.
    """
    r2 = RHO[head] ** 2 / (1 + SEGMENT_NOISE**2 / 2)
    fitted = r2 / math.sqrt(r2 + (1 - r2) * directions / songs)
    return 6 / math.pi * math.asin(fitted / 2)


def write_shards(
    folder: Path,
    songs: Mapping[str, int] = SONGS,
    *,
    width: int = WIDTH,
    seed: int = 0,
    source: EmbeddingSource | None = None,
    files: int = 2,
) -> Path:
    """Write `folder/<split>/*.parquet`; songs have 1 to 3 segments. Returns `folder`."""
    rng = np.random.default_rng(seed)
    directions = {head: rng.standard_normal(width) / math.sqrt(width) for head in HEADS}
    source = source or small_source(width)
    for split, count in songs.items():
        table = _split_table(split, count, directions, rng, source)
        starts = np.linspace(0, len(table), files + 1).astype(int)
        for number, (start, end) in enumerate(pairwise(starts)):
            path = folder / split / f"{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            part = table.slice(start, end - start)
            pq.write_table(part.replace_schema_metadata(source.to_metadata()), path)
    return folder


def _split_table(
    split: str,
    count: int,
    directions: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    source: EmbeddingSource,
) -> pa.Table:
    width = len(directions["clarity"])
    hidden = rng.standard_normal((count, width))
    latent = {
        head: RHO[head] * hidden @ (direction / np.linalg.norm(direction))
        + math.sqrt(1 - RHO[head] ** 2) * rng.standard_normal(count)
        for head, direction in directions.items()
    }
    labels = {head: _popularity(latent[head]) for head in POPULARITY_HEADS}
    labels |= {head: np.clip(3 + AESTHETIC_SPREAD * latent[head], 1, 5) for head in AESTHETIC_HEADS}
    owner = np.repeat(np.arange(count), rng.integers(1, 4, count))
    number = np.arange(len(owner)) - np.searchsorted(owner, owner) + 1
    embedding = hidden[owner] + SEGMENT_NOISE * rng.standard_normal((len(owner), width))
    ids = [f"{split}{i}" for i in owner]
    columns = {
        "audio_id": pa.array(ids),
        "segment_id": pa.array([f"{a}_{n}" for a, n in zip(ids, number, strict=True)]),
        "platform": pa.array(["suno"] * len(owner)),
        **{head: pa.array(labels[head][owner]) for head in POPULARITY_HEADS},
        "segment_embedding": list_column(embedding.astype(np.float32)),
        "layer_embeddings": list_column(_layers(embedding, source, rng)),
        "songeval_scores": pa.array(
            [json.dumps({head: labels[head][i] for head in AESTHETIC_HEADS}) for i in owner]
        ),
    }
    return pa.table(columns)


def _popularity(latent: np.ndarray) -> np.ndarray:
    share = (np.argsort(np.argsort(latent)) + 1) / len(latent)
    return 100 * share ** (math.log(0.5) / math.log(0.8))


def _layers(embedding: np.ndarray, source: EmbeddingSource, rng: np.random.Generator) -> np.ndarray:
    """Four layers whose pooling with the source's weights is `embedding`."""
    weight = np.array(source.pooling_weight)
    layers = 0.3 * rng.standard_normal((len(embedding), len(weight), embedding.shape[1]))
    missing = embedding - source.pooling_bias - np.einsum("nlw,l->nw", layers, weight)
    layers[:, -1] += missing / weight[-1]
    return layers.astype(np.float16)
