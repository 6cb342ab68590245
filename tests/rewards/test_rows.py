"""Result rows against the model called on one song at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.errors import UsageError
from apex_reward.model import ApexReward
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import failures, printable
from apex_reward.scores.apex import HEADS
from apex_reward.scores.mix import RewardMix
from apex_reward.scoring import ScoreSettings
from apex_reward.scoring import score_songs as run
from tests.support import NOT_AUDIO, tiny_model


def score_songs(model, songs, mix=None, segments=False, batch_segments=None, **options):
    """Rows through a `Reward` of one model."""
    reward = Reward(model, mix, batch_segments=batch_segments)
    return run(reward, songs, None, ScoreSettings(mix is not None, segments), **options)


COLUMNS = ["path", "duration", "sample_rate", "segments", *HEADS, "flags", "error"]


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (3, 2), (64, 1)])
def test_rows_equal_the_model_one_song_at_a_time(
    model: ApexReward, songs: list[str], size: int, workers: int
) -> None:
    mix = "musicality=1,score_likes=0.3"
    rows = list(score_songs(model, songs, mix=mix, batch_segments=size, workers=workers))
    assert [row["path"] for row in rows] == songs
    for row in rows[:2] + rows[3:]:
        song = load_audio(row["path"])
        wave = torch.from_numpy(song.samples)[None]
        for head, value in model(wave, song.sample_rate).rows()[0].items():
            assert row[head] == pytest.approx(value, abs=1e-4)
        reward = model.reward(wave, song.sample_rate, mix=mix).item()
        assert row["reward"] == pytest.approx(reward, abs=1e-4)


def test_columns_in_the_order_of_the_contract(model: ApexReward, songs: list[str]) -> None:
    good, _, bad = score_songs(model, songs[:3])
    assert list(good) == list(bad) == COLUMNS
    assert good["error"] is None
    assert (good["duration"], good["sample_rate"], good["segments"]) == (0.075, 24_000, 1)
    assert good["flags"] == ["short"]
    assert bad == {
        **dict.fromkeys(COLUMNS),
        "path": songs[2],
        "segments": 0,
        "flags": [],
        "error": NOT_AUDIO,
    }
    (mixed,) = score_songs(model, songs[:1], mix="overall")
    assert list(mixed) == [*COLUMNS[:-2], "reward_raw", "reward", "flags", "error"]
    assert mixed["reward"] == mixed["reward_raw"]


def test_a_popularity_model_has_two_heads(songs: list[str]) -> None:
    popularity = tiny_model(task="popularity")
    (row,) = score_songs(popularity, songs[:1], mix="popularity")
    assert [name for name in row if name in HEADS] == ["score_streams", "score_likes"]
    expected = (row["score_streams"] + row["score_likes"]) / 200
    assert row["reward"] == pytest.approx(expected)


def test_segment_rows_are_each_segment_scored_alone(model: ApexReward, songs: list[str]) -> None:
    (row,) = score_songs(model, [songs[5]], segments=True)  # 0.775 s at 44.1 kHz
    parts = row.pop("segment_rows")
    (plain,) = score_songs(model, [songs[5]])
    assert row == plain
    assert [part["segment"] for part in parts] == [1, 2, 3, 4]
    assert [part["start"] for part in parts] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert [part["end"] for part in parts] == pytest.approx([0.25, 0.5, 0.75, 0.775], abs=1e-4)
    # At the encoder's own rate a segment is also a song.
    song = torch.from_numpy(load_audio(songs[4]).samples)[None].mean(dim=1)  # 0.6 s
    song = resample(song, 16_000, 24_000)
    (row,) = score_songs(model, [songs[4]], segments=True)
    for n, part in enumerate(row["segment_rows"]):
        alone = model(song[:, n * 6_000 : (n + 1) * 6_000], 24_000).rows()[0]
        for head in HEADS:
            assert part[head] == pytest.approx(alone[head], abs=1e-4)


def test_a_failed_song_has_no_segment_rows(model: ApexReward, songs: list[str]) -> None:
    (row,) = score_songs(model, [songs[2]], segments=True)
    assert row["segment_rows"] == []


def test_mixes_that_make_no_sense_here(model: ApexReward, songs: list[str]) -> None:
    with pytest.raises(UsageError, match="normalised by group"):
        list(score_songs(model, songs, mix=RewardMix({"clarity": 1.0}, "group")))
    with pytest.raises(UsageError, match="unknown head clarity; this model has: "):
        list(score_songs(tiny_model(task="popularity"), songs, mix="clarity=1"))
    with pytest.raises(UsageError, match="calibrated head"):
        list(score_songs(model, songs[:1], mix="preference"))


def test_any_name_can_be_written_as_json() -> None:
    assert printable("Lied \u00e4 \U0001f3b5.wav") == "Lied \u00e4 \U0001f3b5.wav"
    assert json.dumps(printable("\udce9.wav"), ensure_ascii=False).encode() == b'"\\\\udce9.wav"'


def test_each_member_s_rewards_are_those_of_its_heads(songs: list[str]) -> None:
    """An ensemble's row: means, population spreads, and what each member alone would give."""
    reward = Reward(tiny_model(members=3, segment_seconds=0.25), "musicality=2")
    (row,) = run(reward, songs[:1], None, ScoreSettings(True, members=True))
    said = np.array([row[f"musicality_member{i}"] for i in range(3)])
    assert len(set(said)) == 3
    assert row["musicality"] == pytest.approx(said.mean(), abs=1e-5)
    assert row["musicality_std"] == pytest.approx(said.std(), abs=1e-5)
    for name in ("reward", "reward_raw"):  # musicality lies in [1, 5]
        rewards = [row[f"{name}_member{i}"] for i in range(3)]
        assert rewards == pytest.approx(2 * (said - 1) / 4, abs=1e-5)
        assert row[name] == pytest.approx(np.mean(rewards), abs=1e-5)
    (plain,) = run(reward, songs[:1], None, ScoreSettings(False, members=True))
    assert plain["clarity_member1"] == pytest.approx(row["clarity_member1"], abs=1e-5)
    assert not [name for name in plain if name.startswith("reward")]
    (bad,) = run(reward, songs[2:3], None, ScoreSettings(True, members=True))
    assert list(bad) == list(row)
    assert {bad[name] for name in bad if "member" in name or name.endswith("_std")} == {None}


def test_a_song_far_from_the_training_songs_is_unfamiliar(songs: list[str]) -> None:
    model = tiny_model(familiar=True, segment_seconds=0.25)
    for threshold, flagged in ((1e9, False), (1e-9, True)):
        model.familiar.threshold.fill_(threshold)
        (row,) = run(Reward(model), songs[5:6], None, ScoreSettings(False))
        assert ("unfamiliar" in row["flags"]) == flagged


def test_lines_for_the_songs_that_failed() -> None:
    rows = [{"path": "a", "error": None}, {"path": "b", "error": "is silent"}]
    assert failures(rows) == ["b: is silent"]
