"""Distances of a set of songs from a reference set, and how varied songs are.

None of them depends on the order of songs. A reward that rises together with the distance is being
gamed; a spread that falls to zero is a policy that plays one song.

Shape key: N, M = songs of the two sets, W = width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.engine import EngineSettings
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.songs import cells_of

# Draws per size of the unbiased form, and the sizes as shares of the smaller set.
DRAWS = 8
SHARES = (0.4, 0.5, 0.625, 0.8, 1.0)


def frechet_distance(songs: Tensor, reference: Tensor, unbiased: bool = False) -> float:
    """Frechet distance of two sets of embeddings, each taken as a normal distribution.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Frechet Audio Distance (K. Kilgour et al.,
    arXiv 1812.08466). The trace of the root is the sum of the singular values of X_a X_b^T, X the
    centred embeddings over root (n - 1): nothing is inverted or rooted, so it holds for fewer songs
    than dimensions, where the covariances are singular.

    Args:
        songs: (N, W) embeddings, N >= 2.
        reference: (M, W), M >= 2.
        unbiased: small sets look farther apart than they are, by about 1 / N. True fits a line in
            1 / n to the distances of seeded draws of n songs from both and gives its value at
            1 / n = 0 (M. J. Chong and D. Forsyth, arXiv 1911.07023; for music A. Gui et al.,
            arXiv 2311.01616). It may fall below 0. Needs N, M >= 10.

    Returns:
        The distance, at least 0 (not with `unbiased`), in squared units of the embedding.

    Raises:
        UsageError: shapes that do not fit, too few songs, values that are not finite.
    """
    _check(songs, reference, 10 if unbiased else 2)
    a, b = songs.detach().double(), reference.detach().double()
    if not unbiased:
        return _frechet(a, b)
    generator = torch.Generator().manual_seed(0)
    smaller = min(len(a), len(b))
    inverse, distances = [], []
    for share in SHARES:
        size = max(5, round(share * smaller))
        for _ in range(DRAWS):
            chosen = [
                x[torch.randperm(len(x), generator=generator)[:size].to(x.device)] for x in (a, b)
            ]
            inverse.append([1.0, 1.0 / size])
            distances.append(_frechet(*chosen))
    line = torch.linalg.lstsq(
        torch.tensor(inverse, dtype=torch.float64),
        torch.tensor(distances, dtype=torch.float64)[:, None],
    ).solution
    return float(line[0, 0])


def kernel_distance(songs: Tensor, reference: Tensor) -> float:
    """Kernel distance of two sets of embeddings: the unbiased squared maximum mean discrepancy.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y); the first two means are over different songs of
    one set (A. Gretton et al., JMLR 13, 2012; for audio Y. Chung et al., arXiv 2502.15602). The
    kernel is exp(-d^2 / (2 b^2)), and b is `kernel_bandwidth` of the reference alone: a damaged set
    does not choose the scale that it is measured on.

    Args:
        songs: (N, W) embeddings, N >= 2.
        reference: (M, W), M >= 2.

    Returns:
        At most 2. It does not depend on W, and sets smaller than W are no special case. It is 0 on
        average for two sets of one distribution, so it may fall below 0. For a set against itself
        it is 2 (a - 1) / N, where a is the mean of k over different songs.

    Raises:
        UsageError: shapes that do not fit, too few songs, values that are not finite.
    """
    _check(songs, reference, 2)
    width = kernel_bandwidth(reference)
    n, m = len(songs), len(reference)
    own, other = _kernel(songs, songs, width).sum() - n, _kernel(reference, reference, width).sum()
    across = _kernel(songs, reference, width).mean()
    return float(own / (n * (n - 1)) + (other - m) / (m * (m - 1)) - 2 * across)


def kernel_bandwidth(songs: Tensor) -> float:
    """The median distance of two different songs of (N, W) embeddings; 0 for fewer than two."""
    distances = torch.pdist(songs.detach().double())
    return float(np.median(distances.cpu().numpy())) if len(distances) else 0.0


def vendi_diversity(songs: Tensor, bandwidth: float) -> float:
    """The effective number of different songs (D. Friedman and A. Dieng, arXiv 2210.02410).

    The exponential of the entropy of the eigenvalues of K / N, where K is the kernel matrix of
    `kernel_distance`.

    Args:
        songs: (N, W) embeddings, N >= 1.
        bandwidth: of the kernel, as `kernel_bandwidth` of the set with which songs are compared.
            With 0 only equal songs are alike.

    Returns:
        From 1, where all songs are equal, to N, where all are far from each other.

    Raises:
        UsageError: another shape, no song, or values that are not finite.
    """
    _check(songs, songs, 1)
    shares = torch.linalg.eigvalsh(_kernel(songs, songs, bandwidth) / len(songs)).clamp(min=0)
    return float(torch.special.entr(shares).sum().exp())


def embedding_spread(embeddings: Tensor, prompts: Sequence[Hashable] | None = None) -> float:
    """Mean cosine distance of two songs of one prompt.

    Args:
        embeddings: (N, W).
        prompts: N names; songs are compared with songs of the same one. None: all are of one.

    Returns:
        In [0, 2], the mean over prompts of the mean over pairs: 0 where all songs of each prompt
        point the same way. NaN where no prompt has two songs. An embedding of zeros is at distance
        1 from every song.

    Raises:
        UsageError: another shape, or another number of prompts.
    """
    if embeddings.ndim != 2:
        raise UsageError(f"embeddings have shape {tuple(embeddings.shape)}; expected (N, W)")
    names = [0] * len(embeddings) if prompts is None else list(prompts)
    if len(names) != len(embeddings):
        raise UsageError(f"{len(names)} prompts for {len(embeddings)} embeddings; expected as many")
    unit = torch.nn.functional.normalize(embeddings.detach().double(), dim=1)
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name, []).append(i)
    spreads = []
    for group in (group for group in members.values() if len(group) > 1):
        n = len(group)
        cosine = unit[group] @ unit[group].T
        spreads.append(float(1 - (cosine.sum() - cosine.trace()) / (n * (n - 1))))
    return sum(spreads) / len(spreads) if spreads else float("nan")


def song_embeddings(
    reward: Reward,
    songs: Sequence[Any],
    *,
    sample_rate: int | None = None,
    workers: int = 0,
    failed: list[str] | None = None,
    on_song: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embeddings (N, W) of songs: the reward model's, of a panel the first encoder's.

    Args:
        songs, sample_rate, workers: as `Reward.judge` takes them.
        failed: gets a line for each song that cannot be heard, which is left out then.
        on_song: called after every song.

    Raises:
        AudioError: a song that cannot be heard where there is no `failed`, or no member that has
            an encoder.
    """
    if not reward.parts.encoders:
        raise AudioError(f"{reward.model.name} has no encoder, so its songs have no embeddings")
    prompts = ["music"] * len(songs) if reward.model.reads_text else None
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


def _kernel(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    """(N, M) values in [0, 1] of the kernel of (N, W) and (M, W); 1 for equal songs."""
    # Differences, not products: equal songs are at a distance of exactly 0.
    distance = torch.cdist(
        a.detach().double(), b.detach().double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return torch.exp(-0.5 * (distance / max(bandwidth, 1e-12)).square())


def _frechet(a: Tensor, b: Tensor) -> float:
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    x = (a - mean_a) / (len(a) - 1) ** 0.5
    y = (b - mean_b) / (len(b) - 1) ** 0.5
    width = a.shape[1]
    # The singular values of x y^T, from the smaller of equal forms.
    if max(len(a), len(b)) > width:
        # R of a QR decomposition has the covariance of x, without squaring its condition.
        x, y = (torch.linalg.qr(z, mode="r").R if len(z) > width else z for z in (x, y))
    root = torch.linalg.svdvals(x @ y.T).sum()
    distance = (mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, float(distance))


def _check(songs: Tensor, reference: Tensor, least: int) -> None:
    shapes = f"{tuple(songs.shape)} and {tuple(reference.shape)}"
    if songs.ndim != 2 or reference.ndim != 2 or songs.shape[1] != reference.shape[1]:
        raise UsageError(f"embeddings have shapes {shapes}; expected (N, W) and (M, W)")
    if min(len(songs), len(reference)) < least:
        raise UsageError(f"{shapes} are too few songs; expected at least {least} in each set")
    if not bool(torch.isfinite(songs).all() and torch.isfinite(reference).all()):
        raise UsageError("embeddings hold NaN or infinity; leave the songs that failed out")
