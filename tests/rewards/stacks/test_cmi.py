"""CMI-RewardBench's model interface, against the model called on one song at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apex_reward import Reward, load_reward_model
from apex_reward.audio import load_audio
from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.stacks.cmi import CMIRewardModel
from tests.clap_support import PROMPTS, write_tiny_clap
from tests.support import tiny_model, write_three


@pytest.fixture
def folder(tmp_path):
    return write_three(tmp_path)


def test_cmi_reward_bench_s_contract(folder):
    model = tiny_model()
    model.save_pretrained(folder / "model")
    (folder / "musicality.yaml").write_text("models: model\nmix: musicality=1\n")
    bench = CMIRewardModel(checkpoint=str(folder / "musicality.yaml"), device="cpu")
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


def test_loudness_and_caution_of_a_file_count(folder):
    tiny_model(3, members=2).save_pretrained(folder / "two")
    reward = Reward(str(folder / "two"), "musicality=1", loudness=-20.0, caution=3.0)
    reward.save(folder / "reward.yaml")
    bench = CMIRewardModel(str(folder / "reward.yaml"), "cpu")
    (row,) = reward.judge([folder / "0.wav"])
    found = bench.score_batch([{"audio": str(folder / "0.wav")}], batch_size=1, max_dur=0)
    assert found[0, 1] == pytest.approx(row["reward_raw"], abs=1e-4)


def test_text_alignment_is_of_the_models_that_read_the_prompt(folder):
    write_tiny_clap(folder / "clap")
    tiny_model().save_pretrained(folder / "model")
    clap = f"clap:{folder / 'clap'}"
    song, rate = folder / "0.wav", 48_000
    inputs = [{"audio": str(song), "text": text} for text in PROMPTS]
    rows = Reward(load_reward_model(clap)).judge([str(song)] * 2, PROMPTS)
    aligned = [row["adherence"] for row in rows]
    assert abs(aligned[0] - aligned[1]) > 1e-4
    bench = CMIRewardModel(clap, device="cpu")
    assert bench.sr == rate
    assert bench.score_batch(inputs, 2, 0)[:, 0] == pytest.approx(aligned, abs=1e-4)
    models = {"apex": load_reward_model(str(folder / "model")), "clap": load_reward_model(clap)}
    Reward(models, "apex.musicality=1").save(folder / "reward.yaml")
    panel = CMIRewardModel(str(folder / "reward.yaml"), device="cpu")
    scores = panel.score_batch(inputs, 1, 0)
    assert scores[:, 0] == pytest.approx(aligned, abs=1e-4)
    assert scores[0, 1] == pytest.approx(scores[1, 1], abs=1e-6)


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
