"""Every random choice of training, drawn from (seed, epoch, rank): nothing to save for a resume.

A model's draws depend on its own seed only, so that it trains alike alone and in a stack.

Shape key: S = distinct seeds, n = samples, N = samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ORDER, DROPOUT, BOOTSTRAP = 0, 1, 2  # purposes, so that two streams never coincide


def stream(*key: int) -> int:
    """A 63-bit generator seed from whole numbers, as (seed, epoch, purpose, rank).

    >>> stream(42, 1, ORDER) != stream(42, 1, DROPOUT)
    True
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_batches(
    samples: int, seeds: Sequence[int], epoch: int, batch_size: int, rank: int, world: int
) -> list[Tensor]:
    """One epoch's batches for one process: (S, N) sample numbers each.

    Every sample is used once by every seed. Batches differ by at most one sample, so none is
    nearly empty; all have at most `batch_size` samples per process.
    """
    orders = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(stream(seed, epoch, ORDER))
        orders.append(torch.randperm(samples, generator=generator))
    steps = max(1, math.ceil(samples / (batch_size * world)))
    batches = torch.stack(orders).tensor_split(steps, dim=1)
    return [batch.tensor_split(world, dim=1)[rank] for batch in batches]


def bootstrap_samples(
    song: npt.NDArray[np.int64], seed: int, least: int = 2
) -> tuple[Tensor, Tensor]:
    """A sequential bootstrap of whole songs: sample numbers (m,) and how often each was drawn.

    Songs are drawn with replacement until (1 - 1/e) n of the n samples are among them, as many as
    a draw of n holds on average (Rao, Pathak and Koltchinskii 1997). Samples that were drawn
    several times are heard once, with that weight: every member has as many, and no work is done
    twice.

    Args:
        song: (n,) song number of each sample, rising.
        least: of m.
    """
    rng = np.random.default_rng(stream(seed, 0, BOOTSTRAP))
    starts = np.flatnonzero(np.diff(song, prepend=-1))
    sizes = np.diff(starts, append=len(song))
    wanted = max(least, round((1 - 1 / math.e) * len(song)))
    drawn = np.empty(0, np.int64)
    while sizes[np.unique(drawn)].sum() < wanted:
        drawn = np.concatenate([drawn, rng.integers(len(starts), size=len(starts))])
    songs, first = np.unique(drawn, return_index=True)
    order = np.argsort(first)
    enough = np.searchsorted(np.cumsum(sizes[songs[order]]), wanted)
    times = np.bincount(drawn[: first[order[enough]] + 1], minlength=len(starts))
    weights = np.repeat(times, sizes)  # of every sample
    rows = np.flatnonzero(weights)[:wanted]
    return torch.from_numpy(rows), torch.from_numpy(weights[rows]).float()


class DropoutDraws:
    """Dropout masks of a stack's blocks, one draw per seed and step.

    Args:
        seeds: S distinct seeds.
        dropouts: (units, rate) of every block.
        device: where the masks are drawn.
    """

    def __init__(
        self, seeds: Sequence[int], dropouts: Sequence[tuple[int, float]], device: torch.device
    ) -> None:
        self.seeds = tuple(seeds)
        self.units = [units for units, _ in dropouts]
        rates = [torch.full((units,), rate) for units, rate in dropouts]
        self.rate = torch.cat(rates).to(device)
        self.scale = 1.0 / (1.0 - self.rate)
        self.generators = [torch.Generator(device) for _ in seeds]

    def start(self, epoch: int, rank: int) -> None:
        """Begin an epoch's stream."""
        for seed, generator in zip(self.seeds, self.generators, strict=True):
            generator.manual_seed(stream(seed, epoch, DROPOUT, rank))

    def draw(self, samples: int, chosen: Tensor) -> list[Tensor]:
        """Masks of one step: per block (N, M, units), or (N, 1, units) where one seed serves all.

        Args:
            samples: N.
            chosen: (M,) number of each model's seed.
        """
        masks = self.scale.new_empty(samples, len(self.generators), len(self.rate))
        for number, generator in enumerate(self.generators):
            uniform = torch.rand(masks.shape[::2], generator=generator, device=masks.device)
            torch.mul(uniform >= self.rate, self.scale, out=masks[:, number])
        # As many seeds as models: each has its own, in their order.
        if len(self.generators) not in (1, len(chosen)):
            masks = masks.index_select(1, chosen)
        return list(masks.split(self.units, dim=2))
