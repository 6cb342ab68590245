"""The Frechet distance by hand and against scipy; what it says about damaged songs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from apex_reward.demo.damage import damage
from apex_reward.demo.songs import make_song
from apex_reward.errors import UsageError
from apex_reward.rewards.distance import (
    embedding_spread,
    frechet_distance,
    kernel_bandwidth,
    kernel_distance,
    vendi_diversity,
)
from tests.support import tiny_model

RATE = 24_000


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_by_hand() -> None:
    # Means (1, 0) and (0, 1); covariances diag(2, 2) and diag(8, 0), which commute:
    # 2 + (sqrt 2 - sqrt 8)^2 + (sqrt 2 - 0)^2 = 2 + 2 + 2.
    a = torch.tensor([[1 + 3**0.5, 0.0], [1 - 3**0.5, 0.0], [1, 3**0.5], [1, -(3**0.5)]])
    b = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])
    assert frechet_distance(a, b) == pytest.approx(6.0, abs=1e-6)
    # One dimension: (1 - 3)^2 + (1 - 2)^2.
    one = torch.tensor([[0.0], [1.0], [2.0]])
    assert frechet_distance(one, 2 * one + 1) == pytest.approx(5.0)


@pytest.mark.parametrize(("n", "m", "width"), [(40, 30, 5), (200, 9, 20), (60, 80, 7)])
def test_equal_to_scipys_square_root(n: int, m: int, width: int) -> None:
    a = normal(n, width, 1) @ normal(width, width, 2)
    b = normal(m, width, 3) * 0.7 + 0.3
    c_a, c_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    # A little on the diagonal where the covariance is singular, for scipy's sake.
    root = scipy.linalg.sqrtm(c_a @ (c_b + 1e-13 * np.eye(width))).real
    gap = (a.mean(dim=0) - b.mean(dim=0)).numpy()
    expected = gap @ gap + np.trace(c_a + c_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4 if m < width else 1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_fewer_songs_than_dimensions() -> None:
    a, b = normal(6, 768, 1), normal(9, 768, 2)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    # A shift of all songs is its squared length, whatever the spread.
    assert frechet_distance(a, a + 0.5) == pytest.approx(0.25 * 768, rel=1e-12)
    assert frechet_distance(a, b[torch.randperm(9)]) == pytest.approx(frechet_distance(a, b))


def test_the_unbiased_form_takes_the_small_sets_bias_away() -> None:
    # Two draws of one distribution: the distance of the distributions is 0.
    a, b = normal(60, 16, 4), normal(60, 16, 5)
    biased, unbiased = frechet_distance(a, b), frechet_distance(a, b, unbiased=True)
    assert biased > 2.0
    assert abs(unbiased) < 0.25 * biased
    # True distance 16 * 0.5^2 = 4.
    assert frechet_distance(a, b + 0.5) > 6.0
    assert frechet_distance(a, b + 0.5, unbiased=True) == pytest.approx(4.0, abs=1.0)
    assert frechet_distance(a, b, unbiased=True) == unbiased


def test_it_grows_with_damage() -> None:
    model = tiny_model(0)
    songs = [make_song(seed, 4.0, RATE) for seed in range(8)]

    def embed(waves: list[np.ndarray]) -> Tensor:
        with torch.no_grad():
            embedded = model.embed(torch.tensor(np.stack(waves)), RATE)
        return embedded.reshape(len(waves), -1)

    reference = embed(songs)
    assert frechet_distance(reference, reference) == pytest.approx(0.0, abs=1e-9)
    distances = [
        frechet_distance(embed([damage(song, "noise", s, seed=1) for song in songs]), reference)
        for s in (1, 2, 3)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_kernel_distance_is_that_of_a_slow_loop() -> None:
    a, b = normal(7, 20, 1), normal(5, 20, 2) + 0.5  # fewer songs than dimensions
    pairs = [float((x - y).norm()) for i, x in enumerate(b) for y in b[:i]]
    assert kernel_bandwidth(b) == pytest.approx(np.median(pairs), rel=1e-12)

    def mean(xs: Tensor, ys: Tensor, other: bool) -> float:
        values = [
            math.exp(-float((x - y).square().sum()) / (2 * float(np.median(pairs)) ** 2))
            for i, x in enumerate(xs) for j, y in enumerate(ys) if not (other and i == j)
        ]  # fmt: skip
        return sum(values) / len(values)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    shuffled = kernel_distance(a[torch.randperm(7)], b[torch.randperm(5)])
    assert shuffled == pytest.approx(expected, rel=1e-9)
    # Two songs each: k of one distance b is e^-0.5.
    two = torch.tensor([[0.0], [1.0]])
    assert kernel_distance(two, two) == pytest.approx(math.exp(-0.5) - 1)
    assert kernel_distance(b, b) == pytest.approx(2 * (mean(b, b, True) - 1) / 5)
    same = torch.ones(3, 4)
    assert kernel_distance(same, same) == 0.0
    assert kernel_distance(2 * same, same) == 2.0
    with pytest.raises(UsageError, match="at least 2"):
        kernel_distance(a[:1], b)


def test_the_kernel_distance_is_0_on_average_and_grows_with_damage() -> None:
    draws = [kernel_distance(normal(12, 8, i), normal(12, 8, 100 + i)) for i in range(200)]
    assert min(draws) < 0 < max(draws)
    assert abs(sum(draws) / 200) < 3 * float(np.std(draws)) / 200**0.5
    clean, reference, step = normal(30, 16, 1), normal(40, 16, 2), normal(30, 16, 3)
    # Noise of growing level; a bandwidth of the damaged set would follow it.
    distances = [kernel_distance(clean + level * step, reference) for level in (0, 1, 2, 4, 8, 16)]
    assert distances == sorted(distances)
    assert abs(distances[0]) < 0.02 < 0.1 < distances[2]


def test_diversity_counts_different_songs() -> None:
    far = 100 * torch.eye(4)
    assert vendi_diversity(far, 1.0) == pytest.approx(4.0)
    assert vendi_diversity(far[[0, 1, 1, 0]], 1.0) == pytest.approx(2.0)
    assert vendi_diversity(far[:1], 1.0) == pytest.approx(1.0)
    assert vendi_diversity(far[[2, 2, 2]], 0.0) == pytest.approx(1.0)
    # Two songs at distance b: eigenvalues (1 +- e^-0.5) / 2.
    shares = np.array([1 + math.exp(-0.5), 1 - math.exp(-0.5)]) / 2
    two = torch.tensor([[0.0], [3.0]])
    assert vendi_diversity(two, 3.0) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    songs = normal(9, 30, 1)
    width = kernel_bandwidth(songs)
    turned = vendi_diversity(songs[torch.randperm(9)], width)
    assert turned == pytest.approx(vendi_diversity(songs, width))
    assert 1 < vendi_diversity(0.3 * songs, width) < vendi_diversity(songs, width) < 9


def test_spread_by_hand() -> None:
    e = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    # Pairs of the first three: 1, 2, 1; the last two point the same way.
    assert embedding_spread(e[:3]) == pytest.approx(4 / 3)
    assert embedding_spread(e, ["a", "a", "a", "b", "b"]) == pytest.approx(2 / 3)
    assert math.isnan(embedding_spread(e[:1]))
    assert math.isnan(embedding_spread(e[:2], ["a", "b"]))


def test_the_spread_of_silence_in_half_precision() -> None:
    songs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float16)
    # No direction is like silence: cosines 0, 0 and 1.
    assert embedding_spread(songs) == pytest.approx(2 / 3)


def test_wrong_sets_are_named() -> None:
    with pytest.raises(UsageError, match=r"shapes \(4, 3\) and \(4, 2\); expected \(N, W\)"):
        frechet_distance(normal(4, 3, 0), normal(4, 2, 0))
    with pytest.raises(UsageError, match="too few songs; expected at least 2"):
        frechet_distance(normal(1, 3, 0), normal(4, 3, 0))
    with pytest.raises(UsageError, match="too few songs; expected at least 10"):
        frechet_distance(normal(9, 3, 0), normal(40, 3, 0), unbiased=True)
    with pytest.raises(UsageError, match="hold NaN or infinity"):
        frechet_distance(normal(4, 3, 0) / 0, normal(4, 3, 0))
    with pytest.raises(UsageError, match="2 prompts for 4 embeddings"):
        embedding_spread(normal(4, 3, 0), ["a", "b"])
