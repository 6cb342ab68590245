"""MuQ against slow loops, transformers' own encoder, and the published names."""

from __future__ import annotations

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoder,
)

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encoders import muq
from apex_reward.model.encoders.muq import MuqConfig, MuqEncoder, MuqSongs, Subsampling, log_mel
from apex_reward.rewards.foreign.muq import UNUSED, read_muq_config
from tests.muq_support import (
    TINY,
    on_meta,
    published_muq,
    published_muq_config,
    read_muq,
    shapes_of,
    write_muq,
)
from tests.support import GOLDEN, golden_song


def song(samples: int, seed: int = 3) -> Tensor:
    return torch.from_numpy(golden_song(seed, 24_000, 1, samples / 24_000))


def tiny(layer: int = 6, seed: int = 0) -> MuqEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MuqEncoder(TINY, layer).requires_grad_(False)


def slow_log_mel(samples: list[float]) -> Tensor:
    """Frame by frame and band by band, from the definitions (float64)."""
    mirrored = samples[1024:0:-1] + samples + samples[-2:-1026:-1]
    x = torch.tensor(mirrored, dtype=torch.float64)
    n = torch.arange(2048, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 2048)
    to_hz = [700 * (10 ** (2595 * math.log10(1 + 12_000 / 700) / 129 * i / 2595) - 1)
             for i in range(130)]  # fmt: skip
    rows = []
    for frame in range(len(samples) // 240):
        power = torch.fft.rfft(x[frame * 240 : frame * 240 + 2048] * window).abs().square()
        bands = []
        for low, middle, high in zip(to_hz, to_hz[1:], to_hz[2:], strict=False):
            total = 0.0
            for k in range(math.ceil(low / 24_000 * 2048), int(high / 24_000 * 2048) + 1):
                f = k * 24_000 / 2048
                rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
                total += max(0.0, min(rising, falling)) * float(power[k])
            bands.append(10 * math.log10(max(total, 1e-10)))
        rows.append(bands)
    return torch.tensor(rows, dtype=torch.float64).T


def test_log_mel_is_the_definition():
    samples = song(2400).double()
    found = log_mel(samples, mean=0.0, std=1.0)
    assert found.shape == (1, 128, 10)
    assert torch.allclose(found[0], slow_log_mel(samples[0].tolist()), atol=1e-8)
    assert torch.allclose(log_mel(samples, mean=3.0, std=2.0), (found - 3) / 2)
    silence = log_mel(torch.zeros(1, 2400), mean=0.0, std=1.0)
    assert torch.equal(silence, torch.full((1, 128, 10), -100.0))


@pytest.mark.parametrize("mel_frames", [5, 57, 60, 121])
def test_pieces_equal_one_pass(monkeypatch, mel_frames):
    subsampling = Subsampling(4, 16).eval().double()
    mel = torch.randn(2, 128, mel_frames, dtype=torch.float64)
    with torch.no_grad():
        wanted = subsampling(mel)
        for frames in (1, 2, 7):
            monkeypatch.setattr(muq, "PIECE_FRAMES", frames)
            assert torch.allclose(subsampling(mel), wanted, atol=1e-12)
    assert wanted.shape == (2, math.ceil(math.ceil(mel_frames / 2) / 2), 16)


@pytest.mark.parametrize("layer", [0, 1, 6, 7])
def test_hidden_states_are_those_of_transformers(layer):
    samples = song(30_000)
    encoder = tiny(layer)
    config = TINY.conformer()
    config.num_hidden_layers = layer
    config._attn_implementation = "eager"
    whole = Wav2Vec2ConformerEncoder(config).eval()
    whole.load_state_dict(encoder.conformer.state_dict(), strict=False)
    with torch.no_grad():
        inputs = encoder.conv(log_mel(samples, TINY.mean, TINY.std))
        wanted = whole(inputs.clone()).last_hidden_state
        if layer < TINY.depth:  # transformers' own last layer norm comes behind its last layer
            whole.layer_norm = torch.nn.Identity()
            wanted = whole(inputs.clone()).last_hidden_state
        found = encoder(samples)
    assert found.shape == (1, 32, 16)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert len(encoder.conformer.layers) == layer


def test_gradient_is_exact_in_float64():
    encoder = tiny().double()
    samples = song(1200).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encoder(x), (samples,), fast_mode=True)


def test_recomputation_changes_memory_and_not_the_gradient(monkeypatch):
    encoder = tiny().double()

    def gradient_and_kept(seconds: float) -> tuple[Tensor, int]:
        samples = song(round(24_000 * seconds)).double().requires_grad_()
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = encoder(samples)
        hidden.square().sum().backward()
        return samples.grad, sum(kept.values())

    wanted, plain = gradient_and_kept(4.0)
    monkeypatch.setattr(muq, "RECOMPUTE_FRAMES", 0)
    monkeypatch.setattr(muq, "PIECE_FRAMES", 20)
    found, lean = gradient_and_kept(4.0)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert wanted.abs().sum() > 0
    assert lean < plain / 10
    # No (F, F) matrix is kept: twice the song, at most twice the memory.
    assert gradient_and_kept(8.0)[1] < 2.05 * lean


def test_a_batch_gives_what_its_songs_give():
    encoder = tiny()
    batch = torch.cat([song(24_000, seed) for seed in range(3)])
    with torch.no_grad():
        together = encoder(batch)
        for index in range(3):
            assert torch.allclose(together[index], encoder(batch[index : index + 1])[0], atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_near(dtype, tolerance):
    samples = song(41 * 24_000)  # far positions: rotary angles need float32
    encoder = tiny()
    with torch.no_grad():
        wanted = encoder(samples)
        found = encoder.to(dtype)(samples)
    assert found.dtype == torch.float32
    error = (found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert 0 < error < tolerance


def test_float16_that_overflows_is_refused():
    encoder = tiny()
    encoder.conv.linear.weight *= 1e6
    samples = song(4800)
    with torch.no_grad():
        assert encoder(samples).isfinite().all()
        with pytest.raises(UsageError, match="overflows in float16.*bfloat16"):
            encoder.half()(samples)


def test_stays_in_eval_mode_and_pickles():
    encoder = tiny()
    assert not encoder.train().conformer.layers[0].training
    again = pickle.loads(pickle.dumps(encoder))
    with torch.no_grad():
        assert torch.equal(again(song(4800)), encoder(song(4800)))


def test_threads_with_songs_of_several_lengths():
    encoder = tiny()
    songs = [song(4800 + 960 * index) for index in range(8)]

    def run(samples: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder(samples)

    alone = [run(samples) for samples in songs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, songs * 4), alone * 4, strict=True):
            assert torch.equal(found, wanted)


def test_song_encoder_is_the_time_mean():
    songs = MuqSongs(tiny())
    pieces = songs.cut(song(9600), [7000])
    assert pieces.samples.shape == (1, 7000)
    with torch.no_grad():
        mean = songs.encode(pieces.samples, pieces.real)
        assert torch.equal(mean, songs.muq(song(9600)[:, :7000]).mean(dim=1))
    short = songs.cut(torch.ones(1, 10), [10])
    assert short.samples.shape == (1, 1200)
    assert (short.samples.sum(), short.real.tolist()) == (10, [10])


def test_fingerprints_tell_weights_and_layers_apart():
    prints = [MuqSongs(e).fingerprint() for e in (tiny(), tiny(), tiny(seed=1), tiny(layer=5))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_published_names():
    listed = json.loads((GOLDEN / "muq_state_dict.json").read_text())
    full = shapes_of(on_meta(MuqEncoder, MuqConfig(), 12), "model.")
    assert {name: tuple(listed[name]) for name in full} == full
    rest = [name.removeprefix("model.") for name in listed if name not in full]
    assert all(name.startswith(UNUSED) for name in rest)
    six = on_meta(MuqEncoder, MuqConfig(), 6).state_dict()
    assert not [name for name in six if "layers.6." in name or "conformer.layer_norm" in name]


def test_reader_takes_what_it_needs(tmp_path, recwarn):
    write_muq(tmp_path / "a", TINY)
    first = read_muq(tmp_path / "a", 6)
    assert not recwarn.list
    # Renamed weight normalisation, an older file format, half precision, no prefix.
    state = published_muq(TINY)
    conv = "model.conformer.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        state[conv + f"parametrizations.weight.{new}"] = state.pop(conv + old)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text(json.dumps(published_muq_config(TINY)))
    plain = {name.removeprefix("model."): value for name, value in state.items()}
    torch.save(plain, tmp_path / "b" / "pytorch_model.bin")
    second = read_muq(tmp_path / "b", 6)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert second.config == TINY
    save_file({**state, "model.novel": torch.zeros(1)}, tmp_path / "b" / "model.safetensors")
    with pytest.warns(UserWarning, match="also holds novel: not used"):
        read_muq(tmp_path / "b", 6)


def test_reader_lists_what_is_wrong(tmp_path):
    folder = write_muq(tmp_path, TINY, layer=3)
    with pytest.raises(CheckpointError, match="missing: conformer.layers.3.*more"):
        read_muq(folder, 6)
    state = published_muq(TINY)
    state["model.conv.conv.1.bn3.bias"] = torch.zeros(5)
    state["model.conv.linear.bias"] = torch.full((16,), torch.nan)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="bn3.bias has shape") as error:
        read_muq(folder, 6)
    assert "conv.linear.bias holds NaN" in str(error.value)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no MuQ: expected one tensor named ...conv.conv"):
        read_muq(folder, 6)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(published_muq_config(TINY)))
    torch.save({"model.conv.conv.0.conv1.weight": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it was not run"):
        read_muq(tmp_path, 6)
    assert capsys.readouterr().out == ""


def test_configurations_that_are_not_supported(tmp_path):
    values = published_muq_config(TINY)

    def read(**changes: object) -> MuqConfig:
        (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
        return read_muq_config(tmp_path)

    assert read() == TINY
    assert read(stat={"melspec_2048_mean": 1.5, "melspec_2048_std": 2.5}).std == 2.5
    with pytest.raises(CheckpointError, match="hop_length 160 .expected 240.; n_mels 80"):
        read(hop_length=160, n_mels=80)
    relative = {**values["w2v2_config"], "position_embeddings_type": "relative"}
    with pytest.raises(CheckpointError, match="position_embeddings_type 'relative'"):
        read(w2v2_config=relative)
    with pytest.raises(CheckpointError, match="is no MuQ configuration"):
        read(w2v2_config=None)
