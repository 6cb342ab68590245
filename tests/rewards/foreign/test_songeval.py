"""SongEval's published figures, its gradient, its files."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apex_reward import load_reward_model
from apex_reward.cli.score import import_
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.rewards.foreign.songeval import HEADS, SongEval, SongEvalHead
from apex_reward.scores.head import Head
from tests.muq_support import (
    SONGEVAL_FIGURES,
    TINY,
    golden_config,
    published_head,
    shapes_of,
    tiny_songeval,
    write_head,
    write_muq,
)
from tests.support import GOLDEN, golden_song

NAMES = ("coherence", "musicality", "memorability", "clarity", "naturalness")
CASES = [
    pytest.param(name, number, marks=pytest.mark.slow if name == "full" else [])
    for name in SONGEVAL_FIGURES
    for number in range(3)
]


def song(seconds: float, seed: int = 3, rate: int = 24_000) -> Tensor:
    return torch.from_numpy(golden_song(seed, rate, 1, seconds))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A golden model read from published files, imported and loaded again; built once."""
    root = tmp_path_factory.mktemp("songeval")

    @cache
    def build(name: str) -> SongEval:
        config = golden_config(SONGEVAL_FIGURES[name]["overrides"])
        head = write_head(root / name / "repo" / "ckpt" / "model.safetensors", config)
        # Layers above the used one are left out of the file: nothing reads them.
        muq = write_muq(root / name / "muq", config, layer=6)
        SongEval.from_published(head, muq).save_pretrained(root / name / "model")
        return SongEval.from_pretrained(root / name / "model")

    return build


@pytest.mark.parametrize(("name", "number"), CASES)
def test_published_figures(imported: Any, name: str, number: int) -> None:
    model, clip = imported(name), SONGEVAL_FIGURES[name]["clips"][number]
    states = []
    hook = model.encoder.register_forward_hook(lambda module, args, out: states.append(out))
    with torch.no_grad():
        samples = song(clip["seconds"], clip["seed"], clip["rate"])
        (row,) = model(samples, clip["rate"]).rows()
    hook.remove()
    (hidden,) = states
    assert hidden.shape[1] == clip["frames"]
    # In float32, as published; a single step there is 1.2e-4 at 1038, the largest of them.
    norm = hidden.norm().item()
    assert norm == pytest.approx(clip["hidden6_norm"], abs=1e-4, rel=2e-7)
    first = hidden[0].mean(dim=0)[:8].tolist()
    assert first == pytest.approx(clip["hidden6_mean_first8"], abs=1e-4)
    assert row == pytest.approx(clip["scores"], abs=1e-4)
    assert tuple(row) == NAMES


def test_published_names_of_the_head() -> None:
    listed = json.loads((GOLDEN / "songeval_head_state_dict.json").read_text())
    with torch.device("meta"):
        ours = shapes_of(SongEval().head)
    assert ours == {name: tuple(shape) for name, shape in listed.items()}


def test_is_a_reward_model() -> None:
    model = tiny_songeval()
    assert (model.name, model.sample_rate) == ("songeval", 24_000)
    assert (model.differentiable, model.reads_text) == (True, False)
    assert model.heads == HEADS == tuple(Head(name, 1, 5) for name in NAMES)
    assert model.mixes["aesthetics"] == dict.fromkeys(NAMES, 0.2)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.train().modules())


def test_the_head_is_a_plain_module() -> None:
    head = SongEvalHead(16, 40).eval()
    hidden = torch.randn(2, 30, 16)
    with torch.no_grad():
        f = head.ffd(hidden)
        attended = f
        for attention in head.attn:
            plain = nn.MultiheadAttention(16, 8, batch_first=True)
            plain.load_state_dict(attention.state_dict())
            attended, _ = plain(attended, attended, attended)
        wanted = torch.cat([attended.mean(dim=1), f.max(dim=1).values], dim=1)
        assert torch.allclose(head(hidden), wanted, atol=1e-6)


@pytest.mark.slow
def test_a_batch_gives_what_its_songs_give() -> None:
    model = tiny_songeval()
    seconds = [1.0, 60.0, 7.3, 33.3, 12.0]
    rate = 32_000
    songs = [song(s, seed, rate)[0] for seed, s in enumerate(seconds)]
    batch = nn.utils.rnn.pad_sequence(songs, batch_first=True) + 0.0
    lengths = [len(samples) for samples in songs]
    batch[0, lengths[0] :] = 0.3  # what lies beyond a song's end is not heard
    batch.requires_grad_()
    found = model(batch, rate, lengths=lengths).stack()
    found.sum().backward()
    order = [4, 1, 0]
    with torch.no_grad():
        again = model(batch[order], rate, lengths=[lengths[i] for i in order]).stack()
    assert torch.allclose(again, found[order], atol=1e-6)
    for index, samples in enumerate(songs):
        alone = samples[None].clone().requires_grad_()
        scores = model(alone, rate).stack()
        scores.sum().backward()
        assert torch.allclose(scores[0], found[index], atol=1e-4)
        gradient = batch.grad[index]
        assert torch.allclose(gradient[: lengths[index]], alone.grad[0], atol=1e-6)
        assert gradient[lengths[index] :].abs().sum() == 0
        assert gradient.abs().sum() > 0


def test_gradient_is_exact_in_float64() -> None:
    model = tiny_songeval().double()
    samples = song(0.08).double().requires_grad_()

    def scores(x: Tensor) -> Tensor:
        return model(x, 24_000).stack()

    assert torch.autograd.gradcheck(scores, (samples,), fast_mode=True)
    (gradient,) = torch.autograd.grad(scores(samples)[0, 1], samples)
    assert gradient.abs().sum() > 0
    step = torch.zeros_like(samples)
    for position in (100, 960, 1800):
        step[0, position] = 1e-6
        with torch.no_grad():
            rise = (scores(samples + step) - scores(samples - step))[0, 1] / 2e-6
        step[0, position] = 0
        assert gradient[0, position].item() == pytest.approx(rise.item(), rel=1e-4, abs=1e-9)


def test_long_songs_give_the_same_gradient_with_recomputation(monkeypatch: Any) -> None:
    from apex_reward.model.encoders import muq

    model = tiny_songeval()
    gradients = []
    for limit in (10_000, 0):
        monkeypatch.setattr(muq, "RECOMPUTE_FRAMES", limit)
        samples = song(31.0).requires_grad_()
        model(samples, 24_000).stack().sum().backward()
        gradients.append(samples.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_gives_the_scores(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    model = tiny_songeval()
    model.save_pretrained(tmp_path)
    half = load_reward_model(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert half.encoder.conv.linear.weight.dtype == dtype
    assert half.encoder.conv.conv[0].bn1.weight.dtype == torch.float32
    assert half.head.fc.weight.dtype == torch.float32
    songs = torch.cat([song(5.0, seed) for seed in range(3)]).requires_grad_()
    wanted = model(songs, 24_000).stack()
    for other in (half, copy.deepcopy(model).to(dtype)):
        found = other(songs, 24_000).stack()
        assert found.dtype == torch.float32
        assert 0 < (found - wanted).abs().max() < tolerance
        (gradient,) = torch.autograd.grad(found.sum(), songs)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
    with torch.autocast("cpu", dtype=dtype):
        found = model(songs, 24_000).stack()
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < tolerance


def test_the_shortest_songs_score() -> None:
    model = tiny_songeval()
    with torch.no_grad():
        for samples in (1, 100, 1199, 1201):
            found = model(torch.full((1, samples), 0.1), 24_000).stack()
            assert found.isfinite().all()
            assert ((found > 1) & (found < 5)).all()


def test_pickles_copies_and_hashes() -> None:
    model = tiny_songeval()
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(song(1.0), 24_000).stack(), model(song(1.0), 24_000).stack())
    prints = [m.encoders[0].fingerprint() for m in (model, again, tiny_songeval(seed=1))]
    assert prints[0] == prints[1] != prints[2]
    with torch.no_grad():
        again.head.attn[0].in_proj_bias += 1
    assert again.encoders[0].fingerprint() != prints[0]
    with torch.no_grad():
        model.head.fc.bias += 1  # behind the features
    assert model.encoders[0].fingerprint() == prints[0]


def files(folder: Path) -> tuple[Path, Path]:
    head = write_head(folder / "repo" / "ckpt" / "model.safetensors", TINY)
    return head, write_muq(folder / "muq", TINY)


def import_songeval(head: Path, muq: Path, output: Path) -> None:
    import_(predictor=str(head), encoder=str(muq), output=output, kind="songeval")


def test_import_writes_one_folder(tmp_path: Path) -> None:
    head, muq = files(tmp_path)
    output = tmp_path / "new" / "model"
    import_songeval(tmp_path / "repo", muq, output)
    model = SongEval.from_pretrained(output)
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in output.parent.iterdir()] == ["model"]
    assert json.loads((output / "config.json").read_text())["model_type"] == "apex_reward_songeval"
    for other in (model, SongEval.from_published(head, muq)):
        assert other.encoder.config == model.encoder.config == TINY
        state = other.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(weight.requires_grad for weight in other.parameters())
    model.save_pretrained(output)  # over itself
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(UsageError, match="is there already"):
        import_songeval(head, muq, output)
    with pytest.raises(CheckpointError, match="does not exist"):
        import_songeval(head, tmp_path / "none", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_reader_is_strict_on_what_is_needed(tmp_path: Path) -> None:
    head, muq = files(tmp_path)
    good = load_file(head)
    save_file({**good, "criterion.weight": torch.zeros(1)}, head)
    with pytest.warns(UserWarning, match="also holds criterion.weight: not used"):
        SongEval.from_published(head, muq)
    torch.save({f"model.{name}": value.half() for name, value in good.items()}, head.parent / "b")
    prefixed = SongEval.from_published(head.parent / "b", muq)
    assert torch.equal(prefixed.head.fc.weight, good["fc.weight"].half().float())
    short = {name: value for name, value in good.items() if name != "attn.2.in_proj_bias"}
    save_file({**short, "fc.bias": torch.zeros(6)}, head)
    with pytest.raises(CheckpointError, match="missing: attn.2.in_proj_bias") as error:
        SongEval.from_published(head, muq)
    assert "fc.bias has shape (6,), expected (5,)" in str(error.value)
    save_file({"weight": torch.zeros(1)}, head)
    with pytest.raises(CheckpointError, match="is no SongEval head"):
        SongEval.from_published(head, muq)
    wide = published_head(golden_config(SONGEVAL_FIGURES["small"]["overrides"]))
    save_file(wide, head)
    with pytest.raises(
        CheckpointError, match=r"ffd.0.weight has shape .\d+, 64., expected .\d+, 16."
    ):
        SongEval.from_published(head, muq)


def test_folders_that_are_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="git clone.*import --kind songeval"):
        SongEval.from_pretrained()
    model = tiny_songeval()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
    with pytest.raises(
        CheckpointError, match="describes a 'bert'; expected 'apex_reward_songeval'"
    ):
        SongEval.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "muq": {"novel": 1}}))
    with pytest.raises(CheckpointError, match="lacks or adds a setting.*novel"):
        SongEval.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("head.fc.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing: head.fc.bias"):
        SongEval.from_pretrained(tmp_path)
