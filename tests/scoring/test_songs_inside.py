"""Songs that lie inside tables: scored from a saved data set and from Parquet."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Audio, Dataset, DatasetDict

from apex_reward import ApexReward, Reward
from apex_reward.errors import DataError
from apex_reward.scoring import ScoreSettings, find_songs, score_songs


def dataset_of(songs: list[str]) -> Dataset:
    """Bytes named and unnamed, a path, and an empty cell."""
    cells = [
        {"bytes": Path(songs[0]).read_bytes(), "path": "first song.wav"},
        {"bytes": Path(songs[3]).read_bytes(), "path": None},
        {"bytes": None, "path": songs[5]},
        None,
    ]
    columns = {"audio": cells, "prompt": ["a", "b", "c", "d"]}
    return Dataset.from_dict(columns).cast_column("audio", Audio())


def test_parquet_and_saved_sets_score_as_their_files(
    model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    dataset, reward = dataset_of(songs), Reward(model, "musicality=1")
    dataset.to_parquet(str(tmp_path / "songs.parquet"))
    DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for number, rows in enumerate(((0, 1), (2, 3))):
        shard = tmp_path / "hub" / "data" / f"train-{number:05d}-of-00002.parquet"
        dataset.select(rows).to_parquet(str(shard))
    expected = list(score_songs(reward, [songs[0], songs[3], songs[5]], None, ScoreSettings(True)))
    for given in ("songs.parquet", "saved", "hub"):
        sources = find_songs([tmp_path / given], tmp_path / "out")
        assert [source.columns for source in sources] == [{"prompt": name} for name in "abcd"]
        rows = list(score_songs(reward, sources, None, ScoreSettings(True)))
        assert [row["prompt"] for row in rows] == list("abcd")
        assert [row["reward"] for row in rows[:3]] == pytest.approx(
            [row["reward"] for row in expected], abs=1e-6
        )
        assert rows[3]["path"].endswith("row 4")
        assert rows[3]["error"] == "holds no song"
    on_stdout = [s.name for s in find_songs([tmp_path / "songs.parquet"])]
    assert on_stdout == [f"{tmp_path}/songs.parquet: row {n}" for n in (1, 2, 3)] + [None]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(written) == 3  # each song once, whichever way it came
    assert written[2].startswith("first_song-")


def test_a_set_without_songs_says_so(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no column audio or path holds songs; it has text"):
        find_songs([tmp_path / "saved"])
