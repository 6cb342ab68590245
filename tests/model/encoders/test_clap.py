"""The native CLAP against ClapFeatureExtractor and ClapModel."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encode import SongEncoder, song_features
from apex_reward.model.encoders import clap as clap_module
from apex_reward.model.encoders.clap import ClapEncoder, load_clap, repeat_to_window, save_clap
from tests.clap_support import (
    PROMPTS,
    WIDTH,
    tiny_clap_model,
    tiny_extractor,
    tiny_tokenizer,
    write_tiny_clap,
)
from tests.support import golden_song

RATE = 48_000


@pytest.fixture(scope="module")
def encoder() -> ClapEncoder:
    return ClapEncoder(tiny_clap_model(), tiny_tokenizer(), tiny_extractor())


def song(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(golden_song(seed, RATE, 1, seconds))


def published_audio(encoder: ClapEncoder, window: torch.Tensor) -> torch.Tensor:
    """(1, D) of one window (1, n), the way transformers' users compute it."""
    inputs = encoder.extractor(window[0].numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return encoder.model.get_audio_features(**inputs).pooler_output


@pytest.mark.parametrize("seconds", [0.3, 3.0, 10.0])
def test_one_window_equals_transformers(encoder, seconds):
    waveform = song(seconds)
    pieces = encoder.cut(waveform, [waveform.shape[1]])
    inputs = encoder.extractor(waveform[0].numpy(), sampling_rate=RATE, return_tensors="pt")
    mel = encoder.log_mel(repeat_to_window(pieces.samples, pieces.real))
    assert mel.shape == (1, 1001, 64)
    assert (mel - inputs["input_features"][0]).abs().max() < 1e-4
    (found,) = song_features([encoder], waveform, RATE)
    assert found.shape == (1, WIDTH)
    assert (found - published_audio(encoder, waveform)).abs().max() < 1e-4


def test_a_quiet_tone_equals_transformers_too(encoder):
    tone = 1e-3 * torch.sin(2 * torch.pi * 1000 * torch.arange(2 * RATE) / RATE)[None]
    (found,) = song_features([encoder], tone, RATE)
    assert (found - published_audio(encoder, tone)).abs().max() < 1e-4
    (silent,) = song_features([encoder], torch.zeros(1, 100), RATE)
    assert (silent - published_audio(encoder, torch.zeros(1, 100))).abs().max() < 1e-4


def test_songs_and_windows_differ(encoder):
    (found,) = song_features([encoder], torch.cat([song(3.0, 1), song(3.0, 2)]), RATE)
    assert (found[0] - found[1]).norm() > 0.05


@pytest.mark.parametrize("seconds", [20.001, 23.0])
def test_windows_weigh_by_their_real_audio(encoder, seconds):
    """A tail of 1 ms counts 1 ms, not 10 s."""
    waveform = song(seconds)
    (features,) = song_features([encoder], waveform, RATE)
    parts = waveform.split(10 * RATE, dim=1)
    weights = torch.tensor([part.shape[1] / waveform.shape[1] for part in parts])
    windows = torch.cat([published_audio(encoder, part) for part in parts])
    assert (features - weights @ windows).abs().max() < 1e-4


def test_a_batch_gives_what_its_songs_give_alone(encoder):
    seconds = (0.3, 12.0, 4.5)
    songs = [song(s, seed) for seed, s in enumerate(seconds)]
    lengths = [s.shape[1] for s in songs]
    batch = torch.full((3, max(lengths)), 0.5)  # what stands beyond a song's end must not matter
    for row, one in zip(batch, songs, strict=True):
        row[: one.shape[1]] = one
    (found,) = song_features([encoder], batch, RATE, lengths, batch_segments=3)
    for row, one in zip(found, songs, strict=True):
        (alone,) = song_features([encoder], one, RATE)
        assert (row - alone[0]).abs().max() < 1e-5


def test_the_gradient_is_the_slope(encoder):
    exact = ClapEncoder(tiny_clap_model(), tiny_tokenizer(), tiny_extractor()).double()
    waveform = song(0.4).double().requires_grad_()
    target = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)

    def value(x):
        return (song_features([exact], x, RATE)[0][0] * target).sum()

    value(waveform).backward()
    direction = torch.from_numpy(np.random.RandomState(0).standard_normal(waveform.shape))
    slope = (waveform.grad * direction).sum()
    step = 1e-6
    with torch.no_grad():
        rise = value(waveform + step * direction) - value(waveform - step * direction)
    assert slope.abs() > 1e-3
    assert torch.isclose(slope, rise / (2 * step), rtol=1e-4)
    assert all(not weight.requires_grad for weight in exact.parameters())


def test_texts_equal_transformers_and_are_computed_once(encoder, monkeypatch):
    fresh = pickle.loads(pickle.dumps(encoder))
    calls = []
    encode = type(fresh)._encode_text
    monkeypatch.setattr(
        type(fresh), "_encode_text", lambda self, texts: calls.append(texts) or encode(self, texts)
    )
    found = fresh.text([*PROMPTS, PROMPTS[0]])
    tokens = fresh.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = fresh.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
    assert (found[:2] - expected).abs().max() < 1e-5
    assert torch.equal(found[0], found[2])
    assert (found[0] - found[1]).norm() > 0.01
    assert torch.equal(fresh.text([PROMPTS[1]])[0], found[1])
    assert calls == [PROMPTS]
    assert fresh.text([]).shape == (0, WIDTH)


def test_a_long_prompt_is_cut_at_the_text_tower_s_positions(encoder):
    words = "piano " * 200
    found = encoder.text([words])
    tokens = encoder.tokenizer([words], truncation=True, max_length=64, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, 64)
    with torch.no_grad():
        expected = encoder.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
    assert (found - expected).abs().max() < 1e-5


def test_the_cache_is_bounded_and_safe_between_threads(monkeypatch):
    monkeypatch.setattr(clap_module, "CACHED_PROMPTS", 3)
    encoder = ClapEncoder(tiny_clap_model(), tiny_tokenizer(), tiny_extractor())
    prompts = [f"song number {i}" for i in range(12)]
    expected = encoder.text(prompts)
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(encoder.text(prompts))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((result - expected).abs().max() < 1e-6 for result in results)
    assert len(encoder._texts) == 3


def test_training_mode_and_autocast_change_nothing(encoder):
    waveform = song(1.0)
    (expected,) = song_features([encoder], waveform, RATE)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = song_features([encoder], waveform, RATE)
    assert torch.equal(found, expected)


def test_saved_loaded_and_pickled_models_are_the_same(encoder, tmp_path):
    assert isinstance(encoder, SongEncoder)
    save_clap(encoder, tmp_path / "clap")
    loaded = load_clap(tmp_path / "clap")
    copied = pickle.loads(pickle.dumps(encoder))
    other = ClapEncoder(tiny_clap_model(seed=1), tiny_tokenizer(), tiny_extractor())
    assert encoder.fingerprint() == loaded.fingerprint() == copied.fingerprint()
    assert encoder.fingerprint() != other.fingerprint()
    (expected,) = song_features([encoder], song(1.0), RATE)
    for model in (loaded, copied):
        assert torch.equal(song_features([model], song(1.0), RATE)[0], expected)
        assert torch.equal(model.text(PROMPTS), encoder.text(PROMPTS))
    with pytest.raises(UsageError, match="there already"):
        save_clap(encoder, tmp_path / "clap")
    assert [path.name for path in tmp_path.iterdir()] == ["clap"]


def test_files_that_are_not_such_a_clap(tmp_path):
    folder = write_tiny_clap(tmp_path / "clap")
    (folder / "preprocessor_config.json").rename(tmp_path / "mel.json")
    with pytest.raises(CheckpointError, match="no tokenizer or mel settings that can be read"):
        load_clap(folder)
    (tmp_path / "mel.json").rename(folder / "preprocessor_config.json")
    model = tiny_clap_model()
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("text_projection")}
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "extra": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="missing: text_projection[^$]*not expected: extra"):
        load_clap(folder)
    with pytest.raises(CheckpointError, match="with fusion"):
        load_clap(write_tiny_clap(tmp_path / "fused", fusion=True))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="describes a 'bert'"):
        load_clap(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_clap(tmp_path / "nothing")
