"""Training material: labels that fall with damage, batches of one song per damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_reward.demo import DAMAGES
from apex_reward.scores.apex import HEADS
from toys.lessons import (
    VERSIONS,
    apart,
    cut,
    labels,
    losses,
    make_batch,
    make_material,
    taste,
)

NEUTRAL = np.zeros(2, dtype=np.float32)


def test_labels_worked_by_hand() -> None:
    clean = labels("hum", 0, base=0.0, taste=NEUTRAL)
    assert clean == pytest.approx([0.75, 0.75, 0.92, 0.92, 0.92, 0.92, 0.92])
    severe = dict(zip(HEADS, labels("hum", 3, base=0.0, taste=NEUTRAL), strict=True))
    assert severe["clarity"] == pytest.approx(0.92 - 0.84)
    assert severe["memorability"] == pytest.approx(0.92 - 0.84 * 0.7)
    assert severe["score_likes"] == pytest.approx(0.75 - 0.6 * 0.7)
    texture = labels("hum", 0, base=0.4, taste=np.array([0.5, -0.5], dtype=np.float32))
    assert texture[:3] == pytest.approx([0.75 - 0.24 + 0.06, 0.75 - 0.24 - 0.06, 0.92 - 0.336])


@pytest.mark.parametrize("name", DAMAGES)
def test_every_label_falls_with_severity_and_stays_in_range(name: str) -> None:
    for base in (0.0, 0.4):
        for liked in (-1.0, 1.0):
            rows = [labels(name, v, base, np.full(2, liked)) for v in range(VERSIONS)]
            assert (np.diff(rows, axis=0) < 0).all()
            assert np.min(rows) > 0
            assert np.max(rows) < 1


def test_a_batch_holds_every_damage_in_four_versions() -> None:
    songs, textures = make_material(2, 2, seconds=3.0, seed=0)
    assert songs.waves.shape == (2, 72_000)
    waves, real, targets, textured = make_batch(np.random.default_rng(0), songs, textures, 1.0, 0.5)
    assert waves.shape == (8 * 4, 24_000)
    assert real.shape == (8 * 4,)
    assert targets.shape == (8 * 4, 7)
    # A texture starts as if damaged: its clean version is labelled 0.92 - 0.84 * 0.4 at best.
    assert textured.tolist() == (targets.view(8, 4, 7)[:, 0, 2] < 0.6).float().tolist()
    assert 0 < textured.sum() < 8
    again = make_batch(np.random.default_rng(0), songs, textures, 1.0, 0.5)
    assert waves.equal(again.waves)
    versions = waves.view(8, 4, -1)
    assert (versions[:, 0] - versions[:, 3]).abs().amax(dim=1).min() > 0.001
    quality = targets.view(8, 4, 7)
    assert (quality.diff(dim=1) < 0).all()


def test_some_batches_are_padded_with_zeros_at_the_end() -> None:
    songs, textures = make_material(1, 1, seconds=3.0, seed=0)
    rng = np.random.default_rng(1)
    ends = []
    for _ in range(12):
        waves, real, _, textured = make_batch(rng, songs, textures, 1.0, 0.0)
        ends.append(int(waves.abs().sum(dim=0).nonzero().max()) + 1)
        assert real.unique().tolist() == [pytest.approx(ends[-1], abs=5)]
        assert not textured.any()
    assert max(ends) > 23_900
    assert min(ends) < 20_000


def test_a_crop_has_the_asked_length_and_range_even_of_a_short_song() -> None:
    wave = make_material(1, 1, seconds=1.0, seed=0)[0].waves[0]
    for seed in range(10):
        crop = cut(np.random.default_rng(seed), wave, 30_000, quietest=-28)
        assert crop.shape == (30_000,)
        assert 0 < np.abs(crop).max() <= 1


def test_taste_orders_songs_by_brightness_and_liveliness() -> None:
    t = np.arange(24_000) / 24_000
    dull, bright = np.sin(2 * np.pi * 100 * t), np.sin(2 * np.pi * 4000 * t)
    pulsing = dull * (np.sin(2 * np.pi * 3 * t) > 0)
    liked = taste(np.stack([dull, bright, pulsing]).astype(np.float32))
    assert liked[1, 0] > liked[0, 0]
    assert liked[2, 1] > liked[0, 1]
    assert np.abs(liked).max() < 1


def test_losses_worked_by_hand() -> None:
    logits = torch.zeros(4, 7)
    logits[:, 2:] = torch.tensor([3.0, 2.0, 2.0, 0.0])[:, None]
    loss, row = losses(logits, torch.full((4, 7), 0.5), ranking=1.0)
    gaps = np.array([1.0, 1.0, 3.0, 0.0, 2.0])  # clean minus each, then neighbouring severities
    assert row["ranking"] == pytest.approx(np.log1p(np.exp(0.5 - 2 * gaps)).mean(), abs=1e-6)
    assert row["pairs_won"] == 1.0
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 2.0, 2.0, 0.0])))
    assert row["reward"] == pytest.approx(4 * (sigmoid[0] - sigmoid[1:]).mean(), abs=1e-6)
    assert loss.item() == pytest.approx(row["ranking"] + row["regression"], abs=1e-6)


def test_songs_lie_at_nought_and_textures_at_one_along_a_direction() -> None:
    direction = torch.nn.Linear(2, 1)
    with torch.no_grad():
        direction.weight.copy_(torch.tensor([[0.0, 2.0]]))
        direction.bias.fill_(0.5)
    embeddings = torch.tensor([[9.0, -0.25], [9.0, 0.25], [9.0, 1.25]])
    error = apart(embeddings, torch.tensor([0.0, 1.0, 1.0]), direction)
    assert error.item() == pytest.approx(2**2 / 3)
    assert apart(embeddings[:2], torch.tensor([0.0, 1.0]), direction).item() == 0
