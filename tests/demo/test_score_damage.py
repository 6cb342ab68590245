"""The damage table: worked by hand, and filled by scoring every version."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_reward.demo import DAMAGES, SEVERITIES, DamageScores, damage, make_song, score_damage
from apex_reward.scores.scores import Scores


def test_table_of_two_songs_worked_by_hand() -> None:
    values = np.tile([4.0, 3.0, 2.0, 1.0], (2, len(DAMAGES), 1))
    values[0, 0] = [3.0, 3.5, 2.0, 1.0]  # noise: loses to severity 1, falls afterwards
    values[1, 0] = [3.0, 2.0, 2.0, 1.0]  # noise: wins all, but two severities tie
    scores = DamageScores(values)
    rows = {row["damage"]: row for row in scores.table()}
    assert list(rows) == [*DAMAGES, "all"]
    assert rows["noise"]["pairs_won"] == pytest.approx(5 / 6)
    assert rows["noise"]["series_falling"] == 0
    assert rows["noise"]["drop_1"] == pytest.approx((-0.5 + 1.0) / 2)
    assert rows["hum"] == {
        "damage": "hum", "pairs_won": 1, "series_falling": 1, "drop_1": 1, "drop_2": 2, "drop_3": 3,
    }  # fmt: skip
    assert rows["all"]["pairs_won"] == pytest.approx(47 / 48)
    assert rows["all"]["series_falling"] == pytest.approx(14 / 16)


def test_every_version_is_scored_by_the_mean_of_the_aesthetic_heads() -> None:
    def peak_model(waves: torch.Tensor, sample_rate: int) -> Scores:
        assert sample_rate == 8000
        peak = waves.abs().amax(dim=1)
        return Scores.from_stack(
            torch.stack([peak * 0, peak * 0, *[peak + i for i in range(5)]], 1)
        )

    songs = [make_song(seed, 1.0, 8000) for seed in (1, 2)]
    values = score_damage(peak_model, songs, sample_rate=8000).values
    for n, song in enumerate(songs):
        for d, name in enumerate(DAMAGES):
            assert values[n, d, 0] == pytest.approx(np.abs(song).max() + 2)
            for s in SEVERITIES:
                damaged = damage(song, name, s, seed=n, sample_rate=8000)
                assert values[n, d, s] == pytest.approx(np.abs(damaged).max() + 2)
