"""Data sets with songs as bytes, paths and arrays, in every kind of data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Audio, Dataset, DatasetDict

from apex_reward import ApexReward, Reward
from apex_reward.audio import load_audio
from apex_reward.errors import DataError, UsageError
from apex_reward.scores.mix import RewardMix
from apex_reward.scoring import score_dataset


@pytest.fixture(scope="module")
def reward(model: ApexReward) -> Reward:
    return Reward(model, "musicality=1")


def test_bytes_paths_and_arrays_give_the_rows_of_judge(reward: Reward, songs: list[str]) -> None:
    good = [songs[0], songs[3], songs[5]]
    expected = reward.judge(good)
    audio = [{"bytes": Path(path).read_bytes(), "path": None} for path in good]
    as_bytes = Dataset.from_dict({"audio": audio, "n": [1, 2, 3]}).cast_column("audio", Audio())
    arrays = [load_audio(path) for path in good]
    as_arrays: list[dict[str, Any]] = [
        {"audio": {"array": a.mono.tolist(), "sampling_rate": a.sample_rate}} for a in arrays
    ]
    for dataset in (as_bytes, Dataset.from_dict({"audio": good}), Dataset.from_list(as_arrays)):
        scored = score_dataset(dataset, reward, batch_size=2)
        assert scored["reward"] == pytest.approx([row["reward"] for row in expected], abs=1e-5)
        assert scored["error"] == [None] * 3
    assert score_dataset(as_bytes, reward)["n"] == [1, 2, 3]
    streamed = list(score_dataset(Dataset.from_dict({"audio": good}).to_iterable_dataset(), reward))
    assert [row["clarity"] for row in streamed] == pytest.approx(
        [row["clarity"] for row in expected], abs=1e-5
    )


def test_a_bad_song_is_a_row(reward: Reward, songs: list[str]) -> None:
    parts = DatasetDict({"train": Dataset.from_dict({"audio": [songs[2], songs[0]]})})
    scored = score_dataset(parts, reward)["train"]
    assert "is not audio" in scored["error"][0]
    assert scored["reward"][0] is None
    assert scored["error"][1] is None


def test_the_reason_of_a_bad_song_is_the_true_one(reward: Reward, songs: list[str]) -> None:
    missing = Dataset.from_dict({"audio": ["gone.wav", songs[0]]})
    assert score_dataset(missing, reward)["error"] == ["does not exist", None]
    nan = {"array": [float("nan")] * 9000, "sampling_rate": 24_000}
    (error,) = score_dataset(Dataset.from_list([{"audio": nan}]), reward)["error"]
    assert "NaN" in error


def test_columns_of_the_names_of_results_are_kept(reward: Reward, songs: list[str]) -> None:
    cells = {"audio": songs[0], "error": "own", "clarity": 9.0, "input.error": "older"}
    (row,) = score_dataset(Dataset.from_list([cells]), reward)
    assert (row["input.error"], row["input.input.error"]) == ("older", "own")
    assert (row["input.clarity"], row["error"]) == (9.0, None)
    assert row["clarity"] == reward.judge([songs[0]])[0]["clarity"]


def test_wrong_uses_are_named(reward: Reward) -> None:
    with pytest.raises(DataError, match="no column song; it has audio"):
        score_dataset(Dataset.from_dict({"audio": ["a"]}), reward, audio_column="song")
    grouped = Reward(reward.model, RewardMix({"clarity": 1.0}, "group"))
    with pytest.raises(UsageError, match="normalised by group"):
        score_dataset(Dataset.from_dict({"audio": ["a"]}), grouped)
