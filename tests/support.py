"""Builders that the tests share: weights and songs rebuilt by formula, tiny models, files."""

from __future__ import annotations

import json
import random
import socket
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex_reward.audio import save_wav
from apex_reward.model import ApexConfig, ApexReward, Predictor
from apex_reward.rewards.guards import DEFAULT_GUARDS, Action, Guards
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

SEGMENT = 0.25
NOT_AUDIO = (
    "is not audio that can be decoded (libsndfile: Format not recognised; "
    "FFmpeg: Invalid data found when processing input)"
)
GOLDEN = Path(__file__).parent / "golden"

TINY_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def guards_of(names: list[str], action: Action = "flag", penalty: float = 0.5) -> Guards:
    """The default guards of these names, with one action."""
    chosen = (DEFAULT_GUARDS[name] for name in names)
    return Guards(tuple(replace(guard, action=action, penalty=penalty) for guard in chosen))


def formula_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The golden figures' made-up value of a tensor, from its published name alone."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif name.endswith("running_mean"):
        n = 0.1 * n
    elif name.endswith("weight_g"):
        n = 2 + 0.1 * n
    elif name.endswith("masked_spec_embed"):
        pass
    elif name.endswith("bias"):
        n = 0.02 * n
    elif n.ndim == 1:
        n = 1 + 0.1 * n
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(n, np.float32))


def formula_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Formula values for a whole state dict of names and shapes."""
    return {name: formula_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def golden_song(seed: int, sample_rate: int, channels: int, seconds: float) -> np.ndarray:
    """The golden figures' song, (C, N) float32."""
    count = round(sample_rate * seconds)
    t = np.arange(count) / sample_rate
    random = np.random.RandomState(seed)
    rows = []
    for _ in range(channels):
        x = np.zeros(count)
        for _ in range(6):
            f = 55 * 2 ** random.uniform(0, 5)
            a = random.uniform(0.02, 0.12)
            m = random.uniform(0.1, 2)
            p = random.uniform(0, 2 * np.pi)
            x += a * np.sin(2 * np.pi * f * t + p) * (0.6 + 0.4 * np.sin(2 * np.pi * m * t))
        x += 0.15 * np.exp(-12 * ((2 * t) % 1)) * np.sin(2 * np.pi * 60 * t)
        x += 0.02 * random.standard_normal(count)
        rows.append(np.clip(x, -1, 1).astype(np.float32))
    return np.stack(rows)


def published_encoder_shapes(overrides: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names (as published, with weight_g and weight_v) and shapes of a MERT of given overrides."""
    config = ApexConfig(encoder=dict(overrides))
    state = ApexReward(config).encoder.state_dict()
    new = "conv.parametrizations.weight.original"
    return {
        name.replace(new + "0", "conv.weight_g").replace(new + "1", "conv.weight_v"): tuple(v.shape)
        for name, v in state.items()
    }


def write_mert_folder(folder: Path, overrides: Mapping[str, Any]) -> Path:
    """A MERT folder in the published layout with formula weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((GOLDEN / "mert_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **overrides}))
    torch.save(formula_weights(published_encoder_shapes(overrides)), folder / "pytorch_model.bin")
    return folder


def published_predictor_state(task: str, shared: int, width: int = 768) -> dict[str, Tensor]:
    """Formula weights of a predictor under the published names."""
    state = Predictor(width, task, shared).state_dict()
    return formula_weights({name: tuple(value.shape) for name, value in state.items()})


def write_best_model(path: Path, task: str, shared: int, /, **changes: Any) -> Path:
    """A `best_model.pt` as the published training code leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": 12,
        "model_state": published_predictor_state(task, shared),
        "optimizer_state": {"state": {}, "param_groups": []},
        "scheduler_state": {"last_epoch": 12},
        "val_loss": 1.25,
        "mode": "song",
        "task": task,
        "loss": "uncertainty",
        "shared": shared,
        **changes,
    }
    torch.save(content, path)
    return path


def small_config(**changes: Any) -> ApexConfig:
    """A configuration of one-second segments and a few thousand weights."""
    shared = changes.get("shared", 2)
    values: dict[str, Any] = {
        "encoder": TINY_ENCODER,
        "encoder_name": None,
        "layers": (1, 2, 3, 4),
        "trunk_widths": {2: (32, 16), 3: (32, 24, 16)}[shared],
        "head_widths": (8, 8),
        "segment_seconds": 1.0,
        "batch_segments": 4,
        **changes,
    }
    return ApexConfig(**values)


def tiny_model(seed: int = 0, width: int = 32, **changes: Any) -> ApexReward:
    """A tiny `ApexReward` with random weights, scores spread over their ranges.

    `changes` go to `small_config`: `task`, `shared`, `segment_tail`, ...
    """
    encoder = {**TINY_ENCODER, "hidden_size": width, **changes.pop("encoder", {})}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ApexReward(small_config(encoder=encoder, **changes))
        for module in model.predictor.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.05, 0.2)
    return model


def small_student(seed: int = 0, **changes: Any) -> ApexReward:
    """A student of one-second segments with random weights; `changes` go to `ApexConfig`."""
    encoder = {
        "kind": "student", "hidden_size": 24, "inner_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "kernel": 5,
    }  # fmt: skip
    values = {"layers": [2], "head_widths": [16], "encoder_name": None, "segment_seconds": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ApexReward(ApexConfig(encoder=encoder, **{**values, **changes}))


def write_wav(path: Path, seconds: float = 2.0, sample_rate: int = 24_000, **song: Any) -> Path:
    """A golden-style song as a float WAV (`seed`, `channels`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = golden_song(song.get("seed", 0), sample_rate, song.get("channels", 1), seconds)
    save_wav(path, samples, sample_rate)
    return path


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Loudness:
    """A reward model in three lines: the mean square, and the rate it was given."""

    name = "loudness"
    heads = (Head("power", 0, 1), Head("rate", 0, 1e6))
    sample_rate = 24_000
    differentiable = True
    reads_text = False

    def __call__(self, waveforms: Tensor, sample_rate: int, **_: Any) -> Scores:
        power = waveforms.square().mean(dim=-1)
        return Scores({"power": power, "rate": torch.full_like(power, sample_rate)})


def write_three(folder: Path) -> Path:
    """Songs 0, 1 and 2 of 1.2, 1.5 and 1.8 s, and a file that is none."""
    for number in range(3):
        write_wav(folder / f"{number}.wav", seconds=1.2 + 0.3 * number, seed=number)
    (folder / "text.mp3").write_text("no audio")
    return folder
