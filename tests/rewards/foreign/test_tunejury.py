"""TuneJury against a plain module, with embeddings by transformers."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import HubertConfig, HubertModel

from apex_reward.audio.resample import resample
from apex_reward.cli.score import import_
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encoders.mert import MertEncoder, MertSongs, whole_song_mert
from apex_reward.rewards.foreign.clap import Clap
from apex_reward.rewards.foreign.tunejury import TuneJury
from apex_reward.scores.head import Head
from tests.clap_support import PROMPTS, WIDTH, write_tiny_clap
from tests.support import TINY_ENCODER, golden_song

# The larger MERT: normalised before its layers and in every convolution.
MERT = {**TINY_ENCODER, "num_hidden_layers": 3, "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
STABLE = {**MERT, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
WIDTHS = (24, 16, 12, 8)


class PlainHead(nn.Module):
    """The head as REFERENCE describes it."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.net = nn.Sequential(
            *(nn.Linear(2 * WIDTH + 32, a), nn.BatchNorm1d(a), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(b, c), nn.BatchNorm1d(c), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(c, d), nn.BatchNorm1d(d), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(d, 1),
        )


def plain_head() -> PlainHead:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = PlainHead()
        for module in head.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.05, 0.2)
    return head.eval()


def write_mert(folder: Path, **settings: object) -> HubertModel:
    """A MERT folder as published: old names of the weight norm, `mert_model`."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        mert = HubertModel(HubertConfig(**(settings or STABLE))).eval()
    folder.mkdir()
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1":
             "weight_v"}  # fmt: skip
    state = {}
    for name, value in mert.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = value
    torch.save(state, folder / "pytorch_model.bin")
    config = {**mert.config.to_dict(), "model_type": "mert_model", "sample_rate": 24_000}
    (folder / "config.json").write_text(json.dumps({**config, "attention_relax": 32.0}))
    return mert


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_tiny_clap(folder / "clap")
    write_mert(folder / "mert")
    torch.save(plain_head().state_dict(), folder / "tunejury.pt")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> TuneJury:
    return TuneJury.from_published(folder / "tunejury.pt", folder / "mert", folder / "clap")


def song(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(golden_song(seed, rate, 1, seconds))


def published(model: TuneJury, mert: HubertModel, at_48: torch.Tensor, at_24: torch.Tensor, text):
    """One song's score from transformers' models and the plain head."""
    clap, size = model.clap, 480_000
    with torch.no_grad():
        windows = []
        for start in range(0, at_48.shape[1], size):
            window = at_48[0, start : start + size].numpy()
            inputs = clap.extractor(window, sampling_rate=48_000, return_tensors="pt")
            windows.append(clap.model.get_audio_features(**inputs).pooler_output[0])
        real = [min(size, at_48.shape[1] - start) for start in range(0, at_48.shape[1], size)]
        audio = (torch.stack(windows) * torch.tensor(real)[:, None]).sum(dim=0)
        read = torch.zeros(WIDTH)
        if text:
            tokens = clap.tokenizer([text], return_tensors="pt")
            read = clap.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output[0]
        heard = mert(at_24).last_hidden_state.mean(dim=1)[0]
        features = torch.cat([audio / audio.norm(), heard, read])
        return float(plain_head().net(features[None]))


@pytest.mark.parametrize("text", [PROMPTS[0], ""])
@pytest.mark.parametrize("seconds", [2.0, 11.0])
def test_equal_to_a_plain_module(folder, tmp_path, model, seconds, text):
    mert = write_mert(tmp_path / "mert")
    waveform = song(seconds, 24_000)
    at_48 = resample(waveform, 24_000, 48_000)
    found = model(waveform, 24_000, prompts=[text]).preference
    assert found == pytest.approx(published(model, mert, at_48, waveform, text), abs=1e-4)


def test_what_it_says_of_itself(model):
    assert (model.name, model.differentiable, model.reads_text) == ("tunejury", True, True)
    assert model.heads == (Head("preference"),)
    assert not model.train().training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_prompt_and_song_move_the_score(model):
    songs = torch.cat([song(1.0, 48_000, seed) for seed in (0, 1)])
    asked, other, empty = (
        model(songs, 48_000, prompts=prompts).preference
        for prompts in (PROMPTS, PROMPTS[::-1], ["", ""])
    )
    assert (asked - other).abs().min() > 1e-4
    assert (asked - empty).abs().min() > 1e-4
    assert (asked[0] - asked[1]).abs() > 1e-3
    with pytest.raises(UsageError, match="none were given"):
        model(songs, 48_000)


def test_a_batch_gives_what_its_songs_give_alone_with_gradients(model):
    seconds, prompts = (0.01, 1.5, 10.4), [PROMPTS[0], "", PROMPTS[1]]
    songs = [song(s, 48_000, seed) for seed, s in enumerate(seconds)]
    lengths = [one.shape[1] for one in songs]
    batch = torch.zeros(3, max(lengths))
    for row, one in zip(batch, songs, strict=True):
        row[: one.shape[1]] = one
    batch.requires_grad_()
    scores = model(batch, 48_000, lengths=lengths, prompts=prompts).preference
    scores.sum().backward()
    for row, one, score, text in zip(batch.grad, songs, scores, prompts, strict=True):
        alone = one.clone().requires_grad_()
        expected = model(alone, 48_000, prompts=[text]).preference
        expected.sum().backward()
        assert score.item() == pytest.approx(expected.item(), abs=1e-4)
        assert alone.grad.abs().sum() > 0
        error = (row[: one.shape[1]] - alone.grad[0]).norm() / alone.grad.norm()
        assert error < 1e-3
        assert row[one.shape[1] :].abs().sum() == 0


@pytest.mark.parametrize("settings", [MERT, STABLE])
def test_every_hidden_state_is_transformers_own(settings):
    config = HubertConfig(**settings)
    torch.manual_seed(0)
    plain = HubertModel(config).eval()
    encoder = MertEncoder(config, layers=(0, 1, 2, 3))
    encoder.load_state_dict(plain.state_dict())
    waveform = song(0.5, 24_000)
    with torch.no_grad():
        expected = plain(waveform, output_hidden_states=True)
        found = encoder(waveform)[0]
    last = expected.last_hidden_state.mean(dim=1)[0]
    assert (found[3] - last).abs().max() < 1e-5
    for index in (0, 1, 2):
        state = expected.hidden_states[index].mean(dim=1)[0]
        assert (found[index] - state).abs().max() < 1e-5


def test_the_head_s_file(folder, tmp_path, model):
    waveform = song(0.5, 48_000)
    expected = model(waveform, 48_000, prompts=[""]).preference
    wrapped = tmp_path / "wrapped.pt"
    torch.save({"state_dict": plain_head().state_dict(), "epoch": 3}, wrapped)
    again = TuneJury.from_published(wrapped, folder / "mert", folder / "clap")
    assert torch.equal(again(waveform, 48_000, prompts=[""]).preference, expected)

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    (tmp_path / "code.pt").write_bytes(pickle.dumps({"net.0.weight": Code()}))
    torch.save({"state_dict": Code()}, tmp_path / "code_too.pt")
    for name in ("code.pt", "code_too.pt"):
        with pytest.raises(CheckpointError, match="it was not run"):
            TuneJury.from_published(tmp_path / name, folder / "mert", folder / "clap")
    assert not (tmp_path / "it ran").exists()

    state = plain_head().state_dict()
    state["net.4.wrong"] = state.pop("net.4.weight")
    torch.save(state, wrapped)
    with pytest.raises(CheckpointError, match="missing: net.4.weight\n.*not expected: net.4.wrong"):
        TuneJury.from_published(wrapped, folder / "mert", folder / "clap")
    torch.save({"weight": torch.zeros(2)}, wrapped)
    with pytest.raises(CheckpointError, match="not TuneJury's head"):
        TuneJury.from_published(wrapped, folder / "mert", folder / "clap")


def test_imported_saved_and_copied(folder, tmp_path, model):
    waveform, prompts = song(0.5, 48_000), [PROMPTS[1]]
    expected = model(waveform, 48_000, prompts=prompts).preference
    output = tmp_path / "imported"
    import_(
        predictor=str(folder / "tunejury.pt"), encoder=str(folder / "mert"), output=output,
        kind="tunejury", clap=str(folder / "clap"),
    )  # fmt: skip
    assert json.loads((output / "config.json").read_text())["model_type"] == "apex_reward_tunejury"
    loaded = TuneJury.from_pretrained(output)
    for other in (loaded, copy.deepcopy(model)):
        found = other(waveform, 48_000, prompts=prompts).preference
        assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(UsageError, match="there already"):
        model.save_pretrained(output)
    with pytest.raises(CheckpointError, match="import --kind tunejury"):
        TuneJury.from_pretrained("tunejury")
    with pytest.raises(CheckpointError, match="expected 'apex_reward_tunejury'"):
        TuneJury.from_pretrained(folder / "clap")


def test_clap_s_encoder_is_the_one_of_the_model_clap(folder, model):
    clap = Clap.from_pretrained(folder / "clap")
    assert model.encoders[0].fingerprint() == clap.encoders[0].fingerprint()
    other = whole_song_mert(HubertConfig(**MERT))
    assert model.encoders[1].fingerprint() != MertSongs(other).fingerprint()
