"""The embedded apex-tiny: small, says what it is, hears damage in synthetic and in real songs."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import apex_reward.demo
from apex_reward import ApexReward, Reward
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.demo import DAMAGES, make_song, score_damage
from apex_reward.scores.apex import HEADS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDER = Path(apex_reward.demo.__file__).parent / "apex_tiny"
# Two windows of the long song, one of each other file; starts in seconds.
WINDOWS = {"songeval_example": (20, 80), "music_arena_debug_a": (5,), "music_arena_debug_b": (5,)}
MUSIC = 2  # the first windows; the others hold steady white noise
SECONDS, RATE = 20, 24_000


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return ApexReward.from_pretrained("apex-tiny")


def test_it_is_small_and_has_every_part_of_the_architecture(model: ApexReward) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(model.config.layers) == 4
    assert model.config.task == "full"
    assert model.config.segment_seconds == 30
    assert (model.members, len(model.config.spread_scale)) == (8, len(HEADS))
    for predictor in model.predictor.members:
        assert predictor.heads == HEADS
        batch_norms = [m for m in predictor.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert len(batch_norms) == 2 + 2 * len(HEADS)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_it_says_that_it_is_a_demonstration(model: ApexReward) -> None:
    assert model.config.demonstration is True
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "demonstration" in card
    assert "not the published APEX" in card
    assert "synthetic" in card


@pytest.mark.slow
def test_it_hears_damage_in_unseen_synthetic_songs(model: ApexReward) -> None:
    scores = score_damage(model, [make_song(987_654_321 + i, seconds=8.0) for i in range(2)])
    rows = {row["damage"]: row for row in scores.table()}
    assert rows["all"]["pairs_won"] >= 0.8
    assert rows["all"]["drop_3"] > rows["all"]["drop_1"] > 0.1


def test_gradients_reach_every_real_sample(model: ApexReward) -> None:
    wave = torch.from_numpy(make_song(1, seconds=1.0))[None].requires_grad_(True)
    model.reward(wave, RATE, mix="aesthetics").sum().backward()
    assert (wave.grad != 0).float().mean() > 0.99


def strange(name: str, seconds: int) -> np.ndarray:
    """White noise, a speech-like buzz (a tone of 120 Hz with 4 syllables a second), or silence."""
    rng, time = np.random.default_rng(seconds), np.arange(seconds * RATE) / RATE
    waves = {
        "white noise": 0.1 * rng.standard_normal(time.size),
        "loud white noise": rng.uniform(-0.5, 0.5, time.size),
        "buzz": 0.3 * np.sign(np.sin(240 * np.pi * time)) * np.sin(4 * np.pi * time) ** 2,
        "silence": np.zeros(time.size),
    }
    return np.asarray(waves[name], np.float32)


@pytest.mark.parametrize("seconds", [4, 12, 40])
@pytest.mark.parametrize("name", ["white noise", "loud white noise", "buzz", "silence"])
def test_what_is_no_song_is_unfamiliar(model: ApexReward, name: str, seconds: int) -> None:
    (row,) = Reward(model).judge([strange(name, seconds)], sample_rate=RATE)
    assert "unfamiliar" in row["flags"]


@pytest.mark.slow
def test_junk_scores_below_clean_songs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, hum, tones, silence, clipped songs of 4, 12 and 40 s against 40 unseen songs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = runpy.run_path(str(BENCHMARKS / "junk.py"))
    songs = [make_song(2**43 + number, seconds=40.0) for number in range(40)]
    junk = [sound for s in (4, 12, 40) for sound in bench["steady_sounds"](s).values()]
    junk += [bench["clipped"](song[: s * RATE]) for s in (4, 12, 40) for song in songs]
    for name in ("aesthetics", "overall", "README's"):
        values = bench["rewards"](name, [song[: SECONDS * RATE] for song in songs] + junk)
        share = (values[:40, None] > values[40:]).mean()
        steady = (values[:40, None] > values[40:61]).mean()
        print(
            f"{name}: {share:.2%} of pairs in the right order, {steady:.2%} without clipped songs"
        )
        assert share >= 0.99
        assert steady >= 0.99


@pytest.mark.slow
def test_unseen_songs_are_familiar(model: ApexReward) -> None:
    """At most 2 of 100 are not."""
    seconds = (4.0, 8.0, 12.0, 30.0, 60.0)
    flagged = 0
    for number in range(100):
        song = torch.from_numpy(make_song(2**41 + number, seconds[number % 5]))[None]
        distance = model.unfamiliarity(model.embed(song, RATE))
        assert distance is not None
        flagged += int(distance.item() > 1)
    print(f"{flagged} of 100 unseen songs are unfamiliar")
    assert flagged <= 2


@pytest.mark.slow
def test_it_hears_damage_in_windows_of_real_recordings(
    model: ApexReward, shared_folder: Path
) -> None:
    windows = real_windows(shared_folder)
    clean = [
        model.reward(torch.from_numpy(w)[None], RATE, mix="aesthetics").item() for w in windows
    ]
    assert min(clean[:MUSIC]) > max(clean[MUSIC:])
    scores = score_damage(model, windows[:MUSIC])
    rows = scores.table()
    for row in rows:
        print(row)
    shares = {str(row["damage"]): float(row["pairs_won"]) for row in rows}
    assert shares["all"] >= 0.85
    assert min(shares[name] for name in DAMAGES) >= 0.60
    assert float(rows[-1]["series_falling"]) >= 0.75


def real_windows(shared_folder: Path) -> list[np.ndarray]:
    """Four windows of 20 s at 24 kHz, mono."""
    windows = []
    for name, starts in WINDOWS.items():
        waveform = load_audio(shared_folder / "audio" / f"{name}.mp3")
        mono = torch.from_numpy(waveform.samples.mean(axis=0))
        song = resample(mono, waveform.sample_rate, RATE).numpy()
        windows += [song[start * RATE : (start + SECONDS) * RATE] for start in starts]
    assert [w.size for w in windows] == [SECONDS * RATE] * 4
    return windows
