"""Gold and proxy: recordings with known damage, and predictors trained on them by the package.

Used by `overoptimisation.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from apex_reward import ApexReward
from apex_reward.data.shards import EmbeddingSource
from apex_reward.demo import DAMAGES, damage
from apex_reward.scores.apex import HEADS, head_range
from apex_reward.train.evaluate import Checkpoint
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, Split
from apex_reward.train.trainer import train

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # for what teaches apex-tiny
from toys.lessons import Batch, Material, make_batch

RATE, MEMBERS, TEXTURES = 24_000, 8, 0.15
Predictor = Callable[[Tensor], Tensor]


class Recordings(NamedTuple):
    """Waveforms (N, T), their lengths (N,), embeddings (N, W) and labels (N, 7) in head ranges."""

    waves: Tensor
    lengths: Tensor
    embeddings: Tensor
    labels: NDArray[np.float32]


def hear(
    model: ApexReward,
    rng: np.random.Generator,
    material: tuple[Material, Material],
    batches: int,
    seconds: float,
    twice: bool,
) -> Recordings:
    """Recordings with known damage; `twice` damages them again, as no training recording is."""
    waves, lengths, embeddings, targets = [], [], [], []
    for _ in range(batches):
        batch = make_batch(rng, *material, seconds, TEXTURES)
        if twice:
            batch = damaged_again(batch, rng)
        with torch.no_grad():
            embeddings.append(model.embed(batch.waves, RATE, batch.real))
        waves.append(batch.waves)
        lengths.append(batch.real)
        targets.append(batch.targets)
    low, high = (np.array(side) for side in zip(*map(head_range, HEADS), strict=True))
    labels = low + (high - low) * torch.cat(targets).numpy()
    return Recordings(
        torch.cat(waves), torch.cat(lengths), torch.cat(embeddings), labels.astype(np.float32)
    )


def damaged_again(batch: Batch, rng: np.random.Generator) -> Batch:
    names = list(DAMAGES)
    waves = [
        damage(wave.numpy(), names[rng.integers(len(names))], int(rng.integers(1, 4)), i, RATE)
        for i, wave in enumerate(batch.waves)
    ]
    return batch._replace(waves=torch.from_numpy(np.stack(waves)))


def few_noisy(
    model: ApexReward, gold: Predictor, many: Recordings, count: int, seed: int
) -> Predictor:
    """Eight members trained on few recordings, whose labels are the gold's with as much noise."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.choice(len(many.labels), count, replace=False)
    with torch.no_grad():
        truth = gold(many.embeddings)[0].numpy()
    noise = truth.std(axis=0) * rng.standard_normal((count, len(HEADS)))
    labels = (truth[chosen] + noise).astype(np.float32)
    return trained(model, many.embeddings[torch.from_numpy(chosen)], labels, MEMBERS, seed)


def trained(
    model: ApexReward,
    embeddings: Tensor,
    labels: NDArray[np.float32],
    members: int,
    seed: int,
    wide: bool = False,
) -> Predictor:
    """Predictors by the package's trainer; a fifth of the recordings says when to stop."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.members, config.spread_scale, config.familiar = 1, None, False
    if wide:
        config.trunk_widths, config.head_widths = [256, 128], [64, 32]
    order = np.random.default_rng(seed).permutation(len(labels))
    held = max(8, len(labels) // 5)
    parts = {"train": order[held:], "val": order[:held], "test": order[:held]}
    splits = {
        split: Split(
            embeddings.numpy()[rows],
            np.arange(len(rows)),
            np.ones(len(rows), np.float32),
            labels[rows],
            [f"{split}{row}" for row in rows],
        )
        for split, rows in parts.items()
    }
    data = Data(splits, EmbeddingSource.of(config, model.pooling), "full")
    settings = TrainSettings(
        epochs=80, batch_size=64, lr=3e-3, patience=15, seed=seed, members=members
    )
    with TemporaryDirectory() as folder:
        train(data, settings, Path(folder), accelerator=Accelerator(cpu=True))
        predictors = Checkpoint.load(Path(folder) / "best").predictors
    return lambda x: torch.stack([predictor(x) for predictor in predictors])
