"""What apex-tiny is taught with: synthetic recordings, damaged versions of them, made-up labels.

Shape key: N = recordings, T = samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from apex_reward.demo import DAMAGES, SEVERITIES, damage, make_song
from apex_reward.demo.damage import SAMPLE_RATE
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS
from toys.junk import make_texture

VERSIONS = 1 + len(SEVERITIES)  # clean, then severity 1, 2 and 3
# How much a head suffers from a damage, between 0 and 1; what is not named suffers 0.7.
SUFFERS = {
    ("noise", "clarity"): 1.0,
    ("noise", "naturalness"): 0.9,
    ("clipping", "clarity"): 1.0,
    ("clipping", "naturalness"): 1.0,
    ("low-pass", "clarity"): 1.0,
    ("dropouts", "coherence"): 1.0,
    ("dropouts", "naturalness"): 0.9,
    ("hum", "clarity"): 1.0,
    ("hum", "musicality"): 0.8,
    ("detuning", "musicality"): 1.0,
    ("detuning", "naturalness"): 0.9,
    ("timing jitter", "coherence"): 1.0,
    ("timing jitter", "musicality"): 0.9,
    ("reverb mud", "clarity"): 1.0,
    ("reverb mud", "memorability"): 0.8,
}
AMOUNT = (0.0, 0.5, 0.75, 1.0)  # how far each version goes
TEXTURE_AMOUNT = 0.4  # a recording without music starts as if damaged this much
SEEDS = 1_000_000  # recordings of one training seed
Array = NDArray[np.float32]


class Material(NamedTuple):
    """Clean recordings (N, T) as float16 and the taste of each, (N, 2) in [-1, 1]."""

    waves: NDArray[np.float16]
    taste: Array


class Batch(NamedTuple):
    """Crops (8 * 4, T), their real samples (8 * 4,) and targets (8 * 4, 7) in [0, 1].

    `textured` (8,) is 1 where a recording is a texture, 0 where it is a song.
    """

    waves: Tensor
    real: Tensor
    targets: Tensor
    textured: Tensor


def make_material(
    songs: int, textures: int, seconds: float, seed: int
) -> tuple[Material, Material]:
    """Songs and textures, each from a seed of its own."""
    pools = []
    for maker, count in ((make_song, songs), (make_texture, textures)):
        waves = np.stack([maker(seed * SEEDS + i, seconds, SAMPLE_RATE) for i in range(count)])
        pools.append(Material(waves.astype(np.float16), taste(waves)))
    return pools[0], pools[1]


def taste(waves: Array) -> Array:
    """A made-up taste, (N, 2): one likes bright songs, the other lively ones."""
    steps = np.diff(waves, axis=1)
    bright = np.log(np.square(steps).mean(axis=1) / np.square(waves).mean(axis=1))
    frames = waves[:, : waves.shape[1] // 1200 * 1200].reshape(len(waves), -1, 1200)
    lively = np.log(np.square(frames).mean(axis=2) + 1e-9).std(axis=1)
    both = np.stack([bright, lively], axis=1)
    spread = np.maximum(both.std(axis=0), 1e-6)
    return np.tanh((both - both.mean(axis=0)) / spread).astype(np.float32)


def make_batch(
    rng: np.random.Generator,
    songs: Material,
    textures: Material,
    seconds: float,
    texture_share: float,
) -> Batch:
    """One song per damage in four versions; some batches are zero-padded, as a song's end is."""
    length = round(seconds * SAMPLE_RATE)
    lead = SAMPLE_RATE // 2  # heard by the damage, then cut off: reverberation is already there
    real = round(length * (1 - rng.choice([0.0, rng.uniform(0, 0.8)])))
    crops, targets, textures_at = [], [], []
    for name in DAMAGES:
        textured = rng.random() < texture_share
        textures_at.append(float(textured))
        pool = textures if textured else songs
        number = int(rng.integers(len(pool.waves)))
        crop = cut(rng, pool.waves[number], real + lead, quietest=-45 if textured else -28)
        pattern = int(rng.integers(2**30))
        for version in range(VERSIONS):
            wave = damage(crop, name, version, pattern, SAMPLE_RATE) if version else crop
            crops.append(np.pad(wave[lead:], (0, length - real)))
            base = TEXTURE_AMOUNT if textured else 0.0
            targets.append(labels(name, version, base, pool.taste[number]))
    return Batch(
        torch.from_numpy(np.stack(crops)),
        torch.full((len(crops),), real),
        torch.tensor(targets),
        torch.tensor(textures_at),
    )


def make_batches(lengths: Sequence[tuple[float, int]], seed: int) -> Iterator[Batch]:
    """Batches of crops of several lengths, of songs and textures that are made for them.

    Args:
        lengths: seconds of a crop, and how many batches have it.
    """
    for number, (seconds, count) in enumerate(lengths):
        pools = make_material(4 * count, count, 1.3 * seconds + 1, seed + number)
        rng = np.random.default_rng([0, seed, number])
        for _ in range(count):
            yield make_batch(rng, *pools, seconds, texture_share=0.15)


def cut(rng: np.random.Generator, wave: NDArray[np.float16], length: int, quietest: float) -> Array:
    """A crop at a random place, speed (and with it pitch) and loudness."""
    speed = 2 ** rng.uniform(-0.3, 0.3)
    start = rng.integers(0, max(1, wave.size - int(length * speed) - 1))
    position = np.minimum(start + np.arange(length) * speed, wave.size - 1)
    crop = np.interp(position, np.arange(wave.size), wave.astype(np.float32))
    level = 10 ** (rng.uniform(quietest, -10) / 20)
    crop = crop * level / max(float(np.sqrt(np.square(crop).mean())), 1e-4)
    return (crop / max(float(np.abs(crop).max()), 1.0)).astype(np.float32)


def labels(name: str, version: int, base: float, taste: Array) -> list[float]:
    """Targets of the seven heads: quality falls with damage; popularity has a taste besides."""
    targets = []
    for head in HEADS:
        suffered = base + (1 - base) * AMOUNT[version] * SUFFERS.get((name, head), 0.7)
        if head in AESTHETIC_HEADS:
            targets.append(0.92 - 0.84 * suffered)
        else:
            targets.append(0.75 - 0.6 * suffered + 0.12 * float(taste[HEADS.index(head)]))
    return targets


def losses(logits: Tensor, targets: Tensor, ranking: float) -> tuple[Tensor, dict[str, float]]:
    """Label regression plus ranking of neighbouring versions, and a history row.

    Args:
        logits, targets: (N * 4, 7).
        ranking: weight of the ranking.
    """
    regression = F.binary_cross_entropy_with_logits(logits, targets)
    quality = logits[:, -len(AESTHETIC_HEADS) :].mean(dim=1).view(-1, VERSIONS)
    against_clean = quality[:, :1] - quality[:, 1:]
    steps_down = quality[:, 1:-1] - quality[:, 2:]
    gaps = torch.cat([against_clean, steps_down], dim=1)
    ranked = F.softplus(0.5 - 2 * gaps).mean()
    shares = torch.sigmoid(logits[:, -len(AESTHETIC_HEADS) :]).mean(dim=1).view(-1, VERSIONS)
    margin = 4 * (shares[:, :1] - shares[:, 1:]).mean()
    return regression + ranking * ranked, {
        "reward": margin.item(),
        "regression": regression.item(),
        "ranking": ranked.item(),
        "pairs_won": (against_clean > 0).float().mean().item(),
    }


def apart(embeddings: Tensor, textured: Tensor, direction: nn.Linear) -> Tensor:
    """Squared error of a linear probe that is asked for 0 of a song and 1 of a texture.

    Args:
        embeddings: (N, W) of clean recordings.
        textured: (N,) 1 for a texture, 0 for a song.
        direction: the probe, W -> 1.
    """
    return (direction(embeddings).squeeze(1) - textured).square().mean()
