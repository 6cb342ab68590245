"""Published MuQ and SongEval files rebuilt by formula, small or full."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from apex_reward.model.encoders.muq import MuqConfig, MuqEncoder
from apex_reward.model.files import load_checked, read_weights, weight_file
from apex_reward.rewards.foreign.muq import UNUSED, read_muq_config, split_muq
from apex_reward.rewards.foreign.songeval import SongEval
from tests.support import GOLDEN, formula_weights

SONGEVAL_FIGURES: dict[str, Any] = json.loads((GOLDEN / "songeval_golden.json").read_text())[
    "models"
]
TINY = MuqConfig(width=16, depth=7, heads=2, feed_forward=24, kernel=5, channels=4)


def golden_config(overrides: Mapping[str, int]) -> MuqConfig:
    """The sizes of a golden model."""
    names = {
        "dim": "width",
        "depth": "depth",
        "conv": "channels",
        "heads": "heads",
        "inter": "feed_forward",
    }
    return MuqConfig(**{names[name]: value for name, value in overrides.items()})


def shapes_of(module: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names, after a prefix, and shapes of a module's tensors."""
    return {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()}


def on_meta(make: Any, *args: Any) -> Any:
    """A module without memory."""
    with torch.device("meta"):
        return make(*args)


def published_muq(config: MuqConfig, layer: int | None = None) -> dict[str, Tensor]:
    """Formula weights of a MuQ file: what is used, up to `layer`, and parts that are not."""
    layer = config.depth if layer is None else layer
    size = config.width // config.heads
    steps = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    conv = "model.conformer.pos_conv_embed.conv."
    return {
        **formula_weights(shapes_of(on_meta(MuqEncoder, config, layer), "model.")),
        "model.conformer.embed_positions.inv_freq": 1.0 / (config.rotary_base**steps),
        "model.cls_token": torch.zeros(config.width),
        "model.quantizer_melspec_2048.codebook": torch.zeros(4, 2),
        "model.rvq.quantizers.0.codebook.weight": torch.zeros(4, 2),
        "model.linear.weight": torch.zeros(4, config.width),
        "model.linear.bias": torch.zeros(4),
        conv + "bias": torch.zeros(config.width),
        conv + "weight_g": torch.ones(1, 1, 8),
        conv + "weight_v": torch.ones(config.width, 1, 8),
    }


def published_muq_config(config: MuqConfig) -> dict[str, Any]:
    """`config.json` of a MuQ file, as the hub's mixin writes it."""
    return {
        "label_rate": 25,
        "features": ["melspec_2048"],
        "hop_length": 240,
        "n_mels": 128,
        "conv_dim": config.channels,
        "encoder_dim": config.width,
        "encoder_depth": config.depth,
        "mask_prob": 0.6,
        "use_rvq_target": True,
        "stat": {"melspec_2048_mean": config.mean, "melspec_2048_std": config.std},
        "w2v2_config": {
            "model_type": "wav2vec2-conformer",
            "hidden_size": config.width,
            "num_attention_heads": config.heads,
            "intermediate_size": config.feed_forward,
            "hidden_act": config.activation,
            "conv_depthwise_kernel_size": config.kernel,
            "position_embeddings_type": "rotary",
        },
    }


def write_muq(folder: Path, config: MuqConfig, layer: int | None = None) -> Path:
    """A MuQ folder in the published layout, with formula weights up to `layer`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(published_muq_config(config)))
    save_file(published_muq(config, layer), folder / "model.safetensors")
    return folder


def published_head(config: MuqConfig) -> dict[str, Tensor]:
    """Formula weights of a SongEval head."""
    return formula_weights(shapes_of(on_meta(SongEval, config).head))


def write_head(file: Path, config: MuqConfig) -> Path:
    """`ckpt/model.safetensors` of SongEval with formula weights."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(published_head(config), file)
    return file


def tiny_songeval(seed: int = 0, config: MuqConfig = TINY) -> SongEval:
    """A SongEval of a few thousand random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SongEval(config)


def read_muq(folder: Path, layer: int) -> MuqEncoder:
    """A MuQ up to `layer` from a folder in the published layout."""
    encoder, file = on_meta(MuqEncoder, read_muq_config(folder), layer), weight_file(folder)
    load_checked(encoder, file, split_muq(file, read_weights(file))[0], UNUSED)
    return encoder
