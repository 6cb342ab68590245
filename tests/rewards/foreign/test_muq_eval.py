"""MuQ-Eval A1 against a plain module written from its authors' description."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from apex_reward import Reward, RewardMix, load_reward_model
from apex_reward.errors import CheckpointError
from apex_reward.rewards.foreign.muq_eval import MuQEval
from tests.muq_support import TINY, on_meta, published_muq, shapes_of, write_muq
from tests.support import formula_weights, golden_song

RATE = 24_000


def song(seconds: float, seed: int = 3) -> Tensor:
    return torch.from_numpy(golden_song(seed, RATE, 1, seconds))


def published(with_muq: bool = True) -> dict[str, Tensor]:
    """The state dict as described, MuQ included or not."""
    model = on_meta(MuQEval, TINY, 12, 10)
    state = {
        **formula_weights(shapes_of(model.pooling, "encoder.pooling.")),
        **formula_weights(shapes_of(model.opinions, "heads.")),
    }
    muq = {f"encoder.muq.{name}": value for name, value in published_muq(TINY).items()}
    return {**state, **muq} if with_muq else state


def write(folder: Path, state: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "model_state_dict.pt")
    # The training script's own file beside it, which is no plain state dict.
    (folder / "best_model.pt").write_bytes(b"pickle")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> MuQEval:
    return MuQEval.from_published(
        write(tmp_path / "a1", published()), write_muq(tmp_path / "m", TINY)
    )


def by_hand(model: MuQEval, state: dict[str, Tensor], samples: Tensor) -> list[float]:
    # Ten seconds at most, without padding; 1,200 samples are the least that MuQ takes.
    first = F.pad(samples[:, :240_000], (0, max(0, 1_200 - samples.shape[1])))
    with torch.no_grad():
        hidden = model.encoder(first)[0]
    name = "encoder.pooling.attention."
    inner = torch.tanh(hidden @ state[name + "0.weight"].T + state[name + "0.bias"])
    logits = inner @ state[name + "2.weight"].T + state[name + "2.bias"]
    weights = torch.exp(logits) / torch.exp(logits).sum()
    pooled = (weights * hidden).sum(dim=0)
    values = []
    for key in ("MI", "TA"):
        name = f"heads.{key}.mlp."
        x = F.gelu(state[name + "0.weight"] @ pooled + state[name + "0.bias"])
        values.append(float(state[name + "3.weight"] @ x + state[name + "3.bias"]))
    return values


@pytest.mark.parametrize("seconds", [0.01, 4.0, 10.0, 13.5])
def test_equals_the_description(model: MuQEval, seconds: float) -> None:
    with torch.no_grad():
        (row,) = model(song(seconds), RATE).rows()
    assert list(row) == ["musical_impression", "text_alignment"]
    wanted = by_hand(model, published(), song(seconds))
    assert list(row.values()) == pytest.approx(wanted, abs=1e-5)


def test_is_a_reward_model(model: MuQEval) -> None:
    assert (model.name, model.sample_rate, model.reads_text) == ("muq-eval", RATE, False)
    assert not any(head.bounded for head in model.heads)
    assert not any(module.training for module in model.train().modules())


def test_a_batch_gives_what_its_songs_give(model: MuQEval) -> None:
    lengths = [24_000, 288_000, 100_000]
    batch = torch.zeros(3, 288_000)
    for index, length in enumerate(lengths):
        batch[index, :length] = song(12.0, index)[0, :length]
    batch.requires_grad_()
    found = model(batch, RATE, lengths=lengths).stack()
    found.sum().backward()
    for index, length in enumerate(lengths):
        alone = batch[index : index + 1, :length].detach().requires_grad_()
        scores = model(alone, RATE).stack()
        scores.sum().backward()
        assert torch.allclose(scores[0], found[index], atol=1e-4)
        assert torch.allclose(batch.grad[index, :length], alone.grad[0], atol=1e-6)
        assert alone.grad.abs().sum() > 0
    assert batch.grad[1, 240_000:].abs().sum() == 0  # the first ten seconds alone count


def test_a_song_of_several_blocks_is_its_first_ten_seconds(model: MuQEval, tmp_path: Path) -> None:
    """A file of 320 s is decoded in two blocks; only the first ten seconds count."""
    samples = torch.from_numpy(golden_song(1, 8_000, 1, 320.0))[0]
    soundfile.write(tmp_path / "long.wav", samples.numpy(), 8_000, "FLOAT")
    reward = Reward(model, RewardMix({"musical_impression": 1.0}, "none"))
    rows = reward.judge([str(tmp_path / "long.wav"), samples[:81_000]], sample_rate=8_000)
    assert rows[0]["musical_impression"] == pytest.approx(rows[1]["musical_impression"], abs=1e-4)
    assert rows[0]["segments"] == 1


def test_a_pickle_with_code_says_what_helps(tmp_path: Path) -> None:
    torch.save({"config": Path("x"), "model_state_dict": {}}, tmp_path / "best_model.pt")
    with pytest.raises(CheckpointError, match=r"was not run.*take the plain file model_state_dict"):
        MuQEval.from_published(tmp_path / "best_model.pt")


def test_loads_and_pickles(model: MuQEval, tmp_path: Path) -> None:
    with torch.no_grad():
        wanted = model(song(2.0), RATE).stack()
        for other in (
            MuQEval.from_pretrained(tmp_path / "a1", encoder=tmp_path / "m"),
            pickle.loads(pickle.dumps(model)),
        ):
            assert torch.allclose(other(song(2.0), RATE).stack(), wanted, atol=1e-6)
        name = f"muq-eval:{tmp_path / 'a1'}"
        half = load_reward_model(name, encoder=str(tmp_path / "m"), dtype="bfloat16")
        assert 0 < (half(song(2.0), RATE).stack() - wanted).abs().max() < 0.05


def test_weights_of_muq_may_be_elsewhere(model: MuQEval, tmp_path: Path) -> None:
    apart = MuQEval.from_published(write(tmp_path / "b", published(False)), tmp_path / "m")
    state = apart.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_differs_is_listed(model: MuQEval, tmp_path: Path) -> None:
    def read(**changes: Tensor | None) -> MuQEval:
        state = {**published(), **{k.replace("__", "."): v for k, v in changes.items()}}
        kept = {name: value for name, value in state.items() if value is not None}
        return MuQEval.from_published(write(tmp_path / "c", kept), tmp_path / "m")

    read()
    with pytest.raises(CheckpointError, match="missing: heads.TA.mlp.3.bias") as error:
        read(
            heads__TA__mlp__3__bias=None,
            heads__XX__mlp__0__bias=torch.zeros(1),
            adapter__weight=torch.zeros(1),
            heads__MI__mlp__0__bias=torch.zeros(3),
        )
    assert "not expected: heads.XX.mlp.0.bias, adapter.weight" in str(error.value)
    assert "heads.MI.mlp.0.bias has shape (3,), expected (10,)" in str(error.value)
    with pytest.raises(CheckpointError, match="missing: conformer.layers.6.ffn1"):
        read(**{
            name.replace(".", "__"): None
            for name in published()
            if "layers.6.ffn1_layer_norm.weight" in name
        })  # fmt: skip
    with pytest.raises(CheckpointError, match="no MuQ-Eval A1 as its authors describe it"):
        read(encoder__pooling__attention__0__weight=None)
    # Without a folder the published sizes are expected.
    with pytest.raises(CheckpointError, match="encoder.pooling.attention.0.weight has shape"):
        MuQEval.from_published(write(tmp_path / "c", published()))
