"""Rulers against signals worked out by hand, and against FFmpeg."""

from __future__ import annotations

import math
from pathlib import Path

import av
import av.filter
import librosa
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.foreign.rulers import RulerSong, tempo
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.reward import Reward

RATE = 24_000
NAMES = [
    *("length", "loudness", "crest", "loudness_range", "centroid", "bandwidth", "high_share"),
    *("width", "onset_rate", "tempo_stability", "repetition", "silence", "contrast"),
]


def tone(hertz: float, seconds: float = 10.0, level: float = 0.3, rate: int = RATE) -> Tensor:
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (level * torch.sin(2 * math.pi * hertz * time)).float()


def noise(seconds: float = 10.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(RATE * seconds), generator=generator)


def clicks(times: list[float], seconds: float = 10.0, rate: int = RATE) -> Tensor:
    burst = torch.linspace(1, 0, round(0.01 * rate)) * noise(1.0)[: round(0.01 * rate)] * 5
    song = torch.zeros(round(seconds * rate))
    for at in (round(time * rate) for time in times):
        song[at : at + len(burst)] += burst[: len(song) - at]
    return song


def beats(bpm: float, seconds: float = 10.0) -> list[float]:
    return [60 / bpm * k for k in range(int(seconds * bpm / 60))]


def measured(song: Tensor, rate: int = RATE) -> dict[str, float]:
    scores = load_reward_model("rulers")(song[None], rate)
    return {name: float(value) for name, value in scores.items()}


def ebur128(samples: np.ndarray, rate: int) -> tuple[float, float]:
    """Integrated loudness and loudness range by FFmpeg."""
    graph = av.filter.Graph()
    layout = "mono" if len(samples) == 1 else "stereo"
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout=layout, time_base=f"1/{rate}")
    meter, sink = graph.add("ebur128", "metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    found = {}
    for start in range(0, samples.shape[1], rate):
        part = np.ascontiguousarray(samples[:, start : start + rate].T, np.float32)
        frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, start
        source.push(frame)
        while True:
            try:
                found = dict(sink.pull().metadata) or found
            except (av.BlockingIOError, EOFError):
                break
    return float(found["lavfi.r128.I"]), float(found["lavfi.r128.LRA"])


def test_rulers_have_their_heads_no_bounds_and_a_licence() -> None:
    model = load_reward_model("rulers")
    assert [head.name for head in model.heads] == NAMES
    assert not any(head.bounded for head in model.heads)
    assert not model.differentiable
    assert [one["commercial"] for one in model.licences] == [True]
    with pytest.raises(UsageError, match="not differentiable"):
        model(tone(440)[None].requires_grad_(), RATE)


def test_a_tone_and_two_tones() -> None:
    one = measured(tone(1_000))
    assert one["length"] == 10
    assert one["centroid"] == pytest.approx(1_000, abs=1)
    assert one["bandwidth"] < 20
    assert one["high_share"] < 1e-6
    # K-weighting has 0 dB at 1 kHz, and -0.691 belongs to it: 0.3 is -13.47 LUFS.
    assert one["loudness"] == pytest.approx(-13.47, abs=0.05)
    assert one["crest"] == pytest.approx(3.01, abs=0.05)
    for name in ("loudness_range", "width", "tempo_stability", "repetition", "silence", "contrast"):
        assert one[name] == pytest.approx(0, abs=0.01), name
    two = measured(tone(500) + tone(5_500))
    assert two["centroid"] == pytest.approx(3_000, abs=2)
    assert two["bandwidth"] == pytest.approx(2_500, abs=2)
    assert two["high_share"] == pytest.approx(0.5, abs=1e-3)


def test_width_is_the_share_that_the_mono_mix_loses() -> None:
    left, right = noise(), noise(seed=1)
    pairs = {(left, left): 0.0, (left, right): 0.5, (left, -left): 1.0, (3 * left, -left): 0.8}
    for pair, share in pairs.items():
        assert measured(torch.stack(pair))["width"] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("bpm", [50, 75, 93, 120, 128, 140, 174, 220])
def test_tempo_of_click_tracks(bpm: float) -> None:
    song = clicks(beats(bpm))
    found = float(tempo(RulerSong(song, RATE)))
    assert found == pytest.approx(bpm, rel=0.04)
    values = measured(song)
    assert values["onset_rate"] == pytest.approx(len(beats(bpm)) / 10)
    assert values["tempo_stability"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("bpm", [50, 75, 93, 120, 128, 140, 174, 220])
def test_tempo_is_that_of_librosa_on_click_tracks(bpm: float) -> None:
    """librosa weighs tempos by a guess, `start_bpm`, which decides the octave."""
    song = clicks(beats(bpm, 20.0), 20.0)
    ours = float(tempo(RulerSong(song, RATE)))
    theirs = librosa.feature.tempo(y=song.numpy(), sr=RATE, hop_length=128, start_bpm=bpm)
    assert ours == pytest.approx(float(theirs[0]), rel=0.04)


def test_an_unsteady_beat_is_less_stable_than_a_steady_one() -> None:
    times, time = [], 0.0
    while time < 10:
        times.append(time)
        time += 60 / (90 + 9 * time)
    faster = measured(clicks(times))["tempo_stability"]
    assert measured(noise())["tempo_stability"] < 0.2 < faster < 0.6


def test_repetition_silence_and_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    notes = 200 * 2 ** (torch.randint(0, 36, (40,), generator=generator) / 12)
    melody = torch.cat([tone(float(note), 0.5) for note in notes])
    assert measured(melody[: 5 * RATE].repeat(4))["repetition"] > 0.95
    assert measured(melody)["repetition"] < 0.5
    halves = measured(torch.cat([tone(440, 5.0), torch.zeros(5 * RATE)]))
    assert halves["silence"] == pytest.approx(0.5, abs=0.01)
    # One of the bands at least moves by 60 dB, which is a deviation of 30 dB.
    assert 30 / math.sqrt(48) < halves["contrast"] < 30
    assert measured(torch.cat([noise(5.0), noise(5.0, 1)]))["contrast"] < 0.5


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_batch_is_its_songs_one_by_one(rate: int) -> None:
    songs = [clicks(beats(120))[:150_000], noise(9.0), torch.zeros(30_000), torch.ones(4)]
    songs += [torch.cat([tone(300, 4.0), 0.1 * noise(5.0, 2)]), noise(0.01)]
    pairs = [torch.stack([song, 0.5 * song.flip(0)]) for song in songs]
    lengths = [len(song) for song in songs]
    batch = torch.stack([torch.nn.functional.pad(p, (0, 240_000 - p.shape[1])) for p in pairs])
    batch[:, :, max(lengths) :] = 7.0
    model = load_reward_model("rulers")
    together = model(batch, rate, lengths=torch.tensor(lengths))
    for i, pair in enumerate(pairs):
        for name, value in model(pair[None], rate).items():
            assert math.isfinite(float(value))
            assert float(together[name][i]) == pytest.approx(float(value), rel=1e-6, abs=1e-6), name


def test_loudness_and_range_are_those_of_ffmpeg(shared_folder: Path) -> None:
    played = load_audio(shared_folder / "audio" / "songeval_example.mp3")
    real = torch.tensor(played.samples)[:, : 30 * played.sample_rate]
    steps = torch.cat([level * noise(4.0) for level in (1.0, 0.3, 0.05, 2.0)])[None]
    for song, rate in ((real, played.sample_rate), (steps, RATE)):
        loud, spread = ebur128(song.numpy(), rate)
        values = measured(song, rate)
        assert values["loudness"] == pytest.approx(loud, abs=0.1)
        assert values["loudness_range"] == pytest.approx(spread, abs=0.1)


def test_rulers_alone_are_scored_without_a_mix() -> None:
    (row,) = Reward("rulers").judge([(tone(440), RATE)])
    assert row["error"] is None
    assert row["length"] == 10


def test_a_reward_gives_rulers_the_channels_of_files_and_tensors(tmp_path: Path) -> None:
    wide = torch.stack([noise(6.0), noise(6.0, 1)])
    soundfile.write(tmp_path / "wide.wav", wide.T.numpy(), RATE, "FLOAT")
    reward = Reward(["rulers", "apex-tiny"], mix="apex.musicality=1")
    plain = Reward("apex-tiny", mix="musicality=1")
    for workers in (0, 1):
        file, samples = reward.judge([tmp_path / "wide.wav", (wide, RATE)], workers=workers)
        for name, value in measured(wide).items():
            assert file[f"rulers.{name}"] == pytest.approx(value, rel=1e-5, abs=1e-5)
            assert samples[f"rulers.{name}"] == pytest.approx(value, rel=1e-5, abs=1e-5)
        (alone,) = plain.judge([tmp_path / "wide.wav"])
        assert file["reward"] == pytest.approx(alone["reward"], abs=1e-4)
    quiet = reward.parts.forward(wide[None], RATE, loudness=-30.0)[0]
    mixed = measured(wide.mean(dim=0))["loudness"]
    loud = measured(wide)["loudness"] - 30.0 - mixed
    assert float(quiet["rulers.loudness"]) == pytest.approx(loud, abs=1e-3)
