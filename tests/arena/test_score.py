import numpy as np
import pytest
import torch

from apex_reward.arena.score import NOT_NAMED, score_battles, song_paths
from apex_reward.audio import load_audio
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_table
from apex_reward.rewards.reward import Reward
from apex_reward.scores.apex import HEADS
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores
from tests.support import Loudness, tiny_model, write_three, write_wav


@pytest.fixture
def folder(tmp_path):
    return write_three(tmp_path)


def battle(uuid, a, b):
    return {"battle_uuid": uuid, "preference": "A", "audio_a": a, "audio_b": b}


def test_both_sides_get_the_model_s_scores_and_failures_their_reason(folder):
    rows = [
        battle("x", "0.wav", "1.wav"),
        battle("y", "1.wav", "text.mp3"),
        battle("z", "2.wav", ""),
    ]
    paths = song_paths(rows, folder)
    model = tiny_model()
    seen = []
    count, failures = score_battles(
        rows,
        paths,
        folder / "scored.csv",
        Reward(model),
        on_song=lambda row: seen.append(row["path"]),
    )
    assert count == len(seen) == 4  # 1.wav once
    assert len(failures) == 2
    assert "text.mp3" in failures[0]
    assert failures[1] == f"1 sides of battles: {NOT_NAMED}"
    table = read_table(folder / "scored.csv").to_pylist()
    for row, (a, b) in zip(table, [(0, 1), (1, None), (2, None)], strict=True):
        for side, number in (("a", a), ("b", b)):
            if number is None:
                assert row[f"musicality_{side}"] is None
                assert row[f"error_{side}"]
                continue
            song = load_audio(folder / f"{number}.wav")
            expected = model(torch.from_numpy(song.samples)[None], song.sample_rate).apply(
                torch.detach
            )
            for head in HEADS:
                assert row[f"{head}_{side}"] == pytest.approx(float(expected[head]), abs=1e-4)
            assert row[f"error_{side}"] is None
    assert [row["preference"] for row in table] == ["A"] * 3


def test_a_resumed_run_gives_the_same_bytes(folder, monkeypatch):
    rows = [battle("x", "0.wav", "1.wav"), battle("y", "1.wav", "2.wav")]
    paths = song_paths(rows, folder)
    whole = folder / "whole.jsonl"
    score_battles(rows, paths, whole, Reward(Loudness()))

    class Dies(Loudness):
        calls = 0

        def __call__(self, waveforms, sample_rate, lengths=None, prompts=None):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(waveforms, sample_rate)

    part = folder / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_battles(rows, paths, part, Reward(Dies()))
    assert not part.exists()
    assert len((folder / "part.songs.jsonl.partial").read_text().splitlines()) == 1
    counted = Dies()
    counted.calls = 10
    score_battles(rows, paths, part, Reward(counted), resume=True)
    assert counted.calls == 12  # the first song was kept
    assert part.read_bytes() == whole.read_bytes()


def test_resuming_with_another_model_is_refused(folder):
    rows = [battle("x", "0.wav", "1.wav")]
    paths = song_paths(rows, folder)
    score_battles(rows, paths, folder / "s.csv", Reward(Loudness()))
    other = Loudness()
    other.name = "another"
    with pytest.raises(UsageError, match="was made with other models"):
        score_battles(rows, paths, folder / "s.csv", Reward(other), resume=True)


def test_a_song_that_is_no_audio_does_not_stop_another_model(folder):
    rows = [battle("x", "text.mp3", "0.wav")]
    _, failures = score_battles(
        rows, song_paths(rows, folder), folder / "s.jsonl", Reward(Loudness())
    )
    row = read_table(folder / "s.jsonl").to_pylist()[0]
    assert len(failures) == 1
    assert row["power_a"] is None
    song = load_audio(folder / "0.wav")
    assert row["power_b"] == pytest.approx(float(np.mean(song.samples**2)), rel=1e-5)
    assert row["rate_b"] == song.sample_rate


def test_songs_are_found_by_battle_id_without_audio_columns(tmp_path):
    write_wav(tmp_path / "u-1_a.wav", seconds=0.1)
    for ending in ("jpg", "yaml"):  # a cover and a note beside the song
        (tmp_path / f"u-1_a.{ending}").touch()
    rows = [{"battle_uuid": "u-1", "preference": "A"}]
    assert song_paths(rows, tmp_path) == [(str(tmp_path / "u-1_a.wav"), None)]
    with pytest.raises(DataError, match="no battle names a song"):
        song_paths([{"battle_uuid": "u-2"}], tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        song_paths(rows, tmp_path / "nowhere")


def test_rulers_are_added_under_their_name_and_columns_in_the_way_are_kept(folder):
    mine = {"power_a": "mine", "error_a": "old", "input.power_a": "older"}
    rows = [{**battle("x", "0.wav", "1.wav"), **mine}, battle("y", "1.wav", "text.mp3")]
    paths = song_paths(rows, folder)
    model, rulers = Loudness(), Loudness()
    count, failures = score_battles(
        rows, paths, folder / "s.jsonl", Reward(model), rulers=Reward(rulers)
    )
    assert count == 3
    assert len(failures) == 1
    first, second = read_table(folder / "s.jsonl").to_pylist()
    assert first["rulers.power_a"] == first["power_a"] > 0
    names = ("input.power_a", "input.input.power_a", "input.error_a", "error_a")
    assert [first[name] for name in names] == ["older", "mine", "old", None]
    assert second["rulers.power_b"] is second["power_b"] is None
    assert second["error_b"]
    assert second["error_a"] is None


def test_prompt_and_lyrics_of_a_battle_reach_the_model(folder):
    class Words(Loudness):
        heads = (Head("letters", 0, 100), Head("sung", 0, 100))
        reads_text = True

        def __call__(self, waveforms, sample_rate, lengths=None, prompts=None):
            texts = [[float(len(p)), float(len(p.lyrics or ""))] for p in prompts]
            return Scores.from_stack(torch.tensor(texts), self.heads)

    chat = [{"role": "user", "content": "slow blues"}]
    songs = {"audio_a": "0.wav", "audio_b": "1.wav", "preference": "A"}
    rows = [
        {"battle_uuid": "x", **songs, "prompt": chat, "lyrics": "woke up"},
        {"battle_uuid": "y", **songs, "prompt": "slow blues", "lyrics": None},
    ]
    paths = song_paths(rows, folder)
    score_battles(rows, paths, folder / "scored.csv", Reward(Words(), "letters=1"))
    table = read_table(folder / "scored.csv").to_pylist()
    assert [(row["letters_a"], row["sung_b"]) for row in table] == [(10, 7), (10, 0)]
