import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apex_reward.arena.score import NOT_NAMED, score_battles, song_paths
from apex_reward.audio import load_audio
from apex_reward.errors import AudioError, DataError, UsageError
from apex_reward.files.tables import read_table
from apex_reward.rewards.foreign.audiobox import Audiobox
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.stacks.cmi import CMIRewardModel
from apex_reward.scores.apex import HEADS
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores
from tests.support import tiny_model, write_wav


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", seconds=1.2 + 0.3 * number, seed=number)
    (tmp_path / "text.mp3").write_text("no audio")
    return tmp_path


def battle(uuid, a, b):
    return {"battle_uuid": uuid, "preference": "A", "audio_a": a, "audio_b": b}


class Loudness:
    """A reward model in three lines: the mean square."""

    name = "loudness"
    heads = (Head("power", 0, 1), Head("rate", 0, 1e6))
    sample_rate = 24_000
    differentiable = True
    reads_text = False

    def __call__(self, waveforms, sample_rate, lengths=None, prompts=None):
        power = waveforms.square().mean(dim=-1)
        return Scores({"power": power, "rate": torch.full_like(power, sample_rate)})


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
    with pytest.raises(UsageError, match="was made with another reward"):
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
    rows = [{"battle_uuid": "u-1", "preference": "A"}]
    assert song_paths(rows, tmp_path) == [(str(tmp_path / "u-1_a.wav"), None)]
    with pytest.raises(DataError, match="no battle names a song"):
        song_paths([{"battle_uuid": "u-2"}], tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        song_paths(rows, tmp_path / "nowhere")


@pytest.mark.parametrize("as_text", [False, True])
def test_audiobox_axes_are_renamed_whichever_release_answers(as_text):
    given = []

    def forward(songs):
        given.extend(songs)
        rows = [{"CE": 5.0 + n, "CU": 6.0, "PC": 2.0, "PQ": 7.5} for n in range(len(songs))]
        return [json.dumps(row) for row in rows] if as_text else rows

    adapter = Audiobox(SimpleNamespace(forward=forward))
    assert isinstance(adapter, RewardModel)
    scores = adapter(torch.zeros(2, 1, 16000), 16000, lengths=[16000, 8000])
    assert scores.enjoyment.tolist() == [5.0, 6.0]
    assert scores.quality.tolist() == [7.5, 7.5]
    assert [song["path"].shape for song in given] == [(1, 16000), (1, 8000)]
    assert given[0]["sample_rate"] == 16000
    with pytest.raises(UsageError, match="audiobox is not differentiable"):
        adapter(torch.zeros(1, 16000, requires_grad=True), 16000)


def test_reward_models_are_named_on_the_command_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", SimpleNamespace(Loudness=Loudness, Wrong=dict))
    assert load_reward_model("my_rewards:Loudness").name == "loudness"
    with pytest.raises(UsageError, match="expected package.module:Class"):
        load_reward_model("my_rewards:Nothing")
    with pytest.raises(UsageError, match="expected package.module:Class"):
        load_reward_model("not_there_at_all:Model")
    with pytest.raises(UsageError, match="lacks name, heads"):
        load_reward_model("my_rewards:Wrong")
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(UsageError, match=r"pip install 'apex-reward\[audiobox\]'"):
        load_reward_model("audiobox")


def test_cmi_reward_bench_s_contract(folder):
    model = tiny_model()
    model.save_pretrained(folder / "model")
    bench = CMIRewardModel(checkpoint=str(folder / "model"), device="cpu", mix="musicality=1")
    assert bench.sr == 24_000
    assert type(bench).sr.fset is None
    waveform = torch.from_numpy(load_audio(folder / "2.wav").samples)  # (1, T), as the file's
    inputs = [
        SimpleNamespace(audio=str(folder / "0.wav"), text="a song", lyrics="", ref_audio=None),
        {"audio": waveform, "text": "", "lyrics": "la", "ref_audio": None},
        SimpleNamespace(audio=waveform[0], text="", lyrics="", ref_audio=None),
        # three times as long: beside it the others are padded by whole segments
        {"audio": torch.cat([waveform, waveform, waveform], dim=1)},
    ]
    scores = bench.score_batch(inputs, batch_size=2, max_dur=30.0, anything="else")
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (4, 2)
    assert (scores[:, 0] == 0).all()
    assert scores[1, 1] == pytest.approx(scores[2, 1], abs=1e-6)
    for row, name in ((0, "0.wav"), (1, "2.wav")):
        song = load_audio(folder / name)
        expected = model.reward(
            torch.from_numpy(song.samples)[None], song.sample_rate, mix="musicality=1"
        )
        assert scores[row, 1] == pytest.approx(expected.item(), abs=1e-5)
    for size in (1, 4):
        again = bench.score_batch(inputs, batch_size=size, max_dur=0)
        assert again == pytest.approx(scores, abs=1e-5)


def test_cmi_cuts_songs_to_the_longest_duration(folder):
    model = tiny_model()
    model.save_pretrained(folder / "model")
    bench = CMIRewardModel(checkpoint=str(folder / "model"), device="cpu")
    song = torch.from_numpy(load_audio(folder / "2.wav").mono)
    cut, whole = (bench.score_batch([{"audio": song}], 1, max_dur=d)[0, 1] for d in (0.5, 30.0))
    short = bench.score_batch([{"audio": song[:12_000]}], 1, max_dur=30.0)[0, 1]
    assert cut == pytest.approx(short, abs=1e-6)
    assert cut != pytest.approx(whole, abs=1e-4)


def test_cmi_refuses_what_it_cannot_score(folder):
    tiny_model().save_pretrained(folder / "model")
    bench = CMIRewardModel(checkpoint=str(folder / "model"), device="cpu")
    with pytest.raises(UsageError, match="needs `audio`"):
        bench.score_batch([{"text": "a song"}], 1, 30.0)
    with pytest.raises(UsageError, match="batch_size is 0"):
        bench.score_batch([], 0, 30.0)
    with pytest.raises(AudioError):
        bench.score_batch([{"audio": str(folder / "text.mp3")}], 1, 30.0)
