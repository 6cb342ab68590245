"""SongEval: five aesthetic scores of a whole song, natively and differentiably.

The teacher of APEX's aesthetic heads (Yao et al. 2025, arXiv 2505.10793). Layout and arithmetic are
those of the published model.

Shape key: B = songs, T = samples, F = frames (25 a second), W = MuQ's width (1024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apex_reward.errors import CheckpointError
from apex_reward.model.encode import EncodedModel, Lengths, Prompts, song_features
from apex_reward.model.encoders.muq import MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.encoders.muq_files import (
    PUBLISHED_MUQ,
    load_muq,
    read_muq_config,
    split_muq,
)
from apex_reward.model.files import (
    encoder_path,
    hub_options,
    load_checked,
    local_path,
    read_model,
    read_weights,
    weight_file,
    write_folder,
)
from apex_reward.model.licences import CODE, MUQ, Licence, licence
from apex_reward.model.precision import FrozenModel, in_full_precision, placed
from apex_reward.model.source import Source, with_source
from apex_reward.scores.apex import AESTHETIC_HEADS, APEX_MIXES
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

# SongEval reads this one of MuQ's 13 hidden states (0 is the conformer's input).
LAYER = 6
ATTENTIONS = 4
ATTENTION_HEADS = 8
HEADS = tuple(Head(name, 1.0, 5.0) for name in AESTHETIC_HEADS)
MODEL_TYPE = "apex_reward_songeval"
PUBLISHED_HEAD = Path("ckpt") / "model.safetensors"
FIRST = "ffd.0.weight"
REPOSITORY = "https://github.com/ASLP-lab/SongEval"
HOW = (
    f"SongEval's files are not on the hub in one piece: `git clone {REPOSITORY}`, `apex-reward "
    "import --kind songeval --predictor SongEval/ckpt/model.safetensors --encoder "
    f"{PUBLISHED_MUQ} --output songeval`, and name that folder (songeval:FOLDER)"
)


class SongEval(EncodedModel, FrozenModel):
    """SongEval as a reward model: coherence, musicality, memorability, clarity, naturalness.

    It encodes the whole song in one pass, mono at 24 kHz (resampled by our own windowed sinc; the
    published pipeline resamples with librosa). Every head lies in [1, 5]. Always in eval mode;
    weights are frozen, and gradients reach the waveform. The head computes in float32 at least.

    Costs, per second of song: about 15 billion multiply-adds, three quarters of them in MuQ's
    subsampling; memory grows with the song as described in `apex_reward.model.encoders.muq`.

    Args:
        muq: MuQ's sizes; None takes the published ones.
        feed_forward: inner width of the head, 4096 published; None is four times MuQ's width.
    """

    name = "songeval"
    mixes = {"aesthetics": APEX_MIXES["aesthetics"]}  # noqa: RUF012
    default_mix = "aesthetics"
    licences: ClassVar[list[Licence]] = [
        CODE,
        licence("SongEval code", "Apache-2.0", True, f"{REPOSITORY}/issues/8"),
        licence("SongEval head", "CC BY-NC-SA 4.0", False, f"{REPOSITORY} (README)"),
        MUQ,
    ]

    def __init__(self, muq: MuqConfig | None = None, feed_forward: int | None = None) -> None:
        super().__init__()
        self.encoder = MuqEncoder(muq, LAYER)
        self.head = SongEvalHead(self.encoder.config.width, feed_forward)
        self.requires_grad_(False)
        self.eval()

    @property
    def heads(self) -> tuple[Head, ...]:
        """Five heads in [1, 5]."""
        return HEADS

    @property
    def encoders(self) -> tuple[MuqSongs, ...]:
        """MuQ with the head's pooling; its song feature is the (B, 2W) input of the last layer."""
        return (_PooledSongs(self.encoder, self.head),)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of song features, one (B, 2W) tensor."""
        values = in_full_precision(self.head.fc, features[0])
        return Scores.from_stack(2 * torch.tanh(values) + 3, HEADS)

    def embed(self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None) -> Tensor:
        """Time-means (B, W) of the hidden state that SongEval reads; arguments as of a call."""
        (means,) = song_features([MuqSongs(self.encoder)], waveforms, sample_rate, lengths)
        return means

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`, whole or not at all."""
        config = {
            "model_type": MODEL_TYPE,
            "muq": asdict(self.encoder.config),
            "feed_forward": self.head.ffd[0].out_features,
        }
        write_folder(folder, config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "songeval", *, encoder: str | Path | None = None, **options: Any
    ) -> SongEval:
        """Load a folder of `save_pretrained` or `apex-reward import --kind songeval`.

        Args:
            name: that folder; a published head (a file or its folder) is composed with a MuQ.
            encoder: hub id or folder of the MuQ for a published head; None is the published one.
            options: `dtype` of the encoder (the head keeps float32), `device_map`, and the hub's
                (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: nothing there, not such a model, or any missing or misshapen tensor.
        """
        hub = hub_options(options)
        if str(name) == cls.name and not Path(name).exists():
            raise CheckpointError(HOW)
        path = local_path(name, **hub)
        if path.is_file() or not (path / "config.json").is_file():
            model = cls.from_published(path, encoder, **options, **hub)
            return with_source(model, Source.of_kind(cls.name, name, encoder=encoder, **hub))
        model = read_model(
            path, MODEL_TYPE, lambda c: _empty(MuqConfig(**c["muq"]), c["feed_forward"])
        )
        return with_source(placed(model, **options), Source.of_kind(cls.name, name, **hub))

    @classmethod
    def from_published(
        cls, predictor: str | Path, encoder: str | Path | None = None, **options: Any
    ) -> SongEval:
        """Compose the published files.

        Args:
            predictor: `ckpt/model.safetensors` of ASLP-lab/SongEval, or a folder that holds it.
            encoder: hub id or folder of MuQ-large-msd-iter; None is the hub's.
            options: as in `from_pretrained`.

        Raises:
            CheckpointError: as in `from_pretrained`. Tensors that nothing needs are warned of.
        """
        hub = hub_options(options)
        file = _head_file(local_path(predictor, **hub))
        head = _read_head(file)
        folder = encoder_path(encoder or PUBLISHED_MUQ, **hub)
        config = read_muq_config(folder)
        if head[FIRST].shape[1] != config.width:
            raise CheckpointError(
                f"{file}: {FIRST} takes hidden states of width {head[FIRST].shape[1]}, but the "
                f"encoder {folder} gives {config.width}"
            )
        model = _empty(config, head[FIRST].shape[0])
        load_checked(model.head, file, head, unused=())
        weights = weight_file(folder)
        state, _ = split_muq(weights, read_weights(weights))
        load_muq(weights, model.encoder, state)
        source = Source.of_kind(cls.name, predictor, encoder=encoder, **hub)
        return with_source(placed(model, **options), source)


class SongEvalHead(nn.Module):
    """Hidden states (N, F, W) to the last layer's input (N, 2W); `fc` makes five values of it.

    Tensor names are those of the published file.
    """

    def __init__(self, width: int, feed_forward: int | None = None) -> None:
        super().__init__()
        inner = feed_forward or 4 * width
        self.ffd = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.attn = nn.ModuleList(
            nn.MultiheadAttention(width, ATTENTION_HEADS) for _ in range(ATTENTIONS)
        )
        self.fc = nn.Linear(2 * width, len(HEADS))

    def forward(self, hidden: Tensor) -> Tensor:
        """[time-mean behind four attentions in a row, time-maximum before them], (N, 2W)."""
        before = self.ffd(hidden)
        after = before
        for attention in self.attn:
            after = _attend(cast(nn.MultiheadAttention, attention), after)
        return torch.cat([after.mean(dim=1), before.amax(dim=1)], dim=1)


def _attend(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Self-attention of (N, F, W) that never holds the (F, F) weights.

    The module's own call would, in eval mode without gradients.
    """
    parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts
    )
    found = F.scaled_dot_product_attention(query, key, value)
    return attention.out_proj(found.transpose(1, 2).flatten(2))


class _PooledSongs(MuqSongs):
    """Whole songs through MuQ and the head's pooling."""

    def __init__(self, muq: MuqEncoder, head: SongEvalHead) -> None:
        super().__init__(muq)
        self.head = head

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """The feature (1, 2W) of one song (1, n)."""
        return in_full_precision(self.head, self.muq(samples))

    def weights(self) -> Sequence[nn.Module]:
        """MuQ and the head's pooling."""
        return (self.muq, self.head.ffd, self.head.attn)


def _empty(config: MuqConfig, feed_forward: int) -> SongEval:
    # Nothing is drawn at random only to be thrown away.
    with torch.device("meta"):
        return SongEval(config, feed_forward)


def _head_file(path: Path) -> Path:
    if path.is_dir() and (path / PUBLISHED_HEAD).is_file():
        return path / PUBLISHED_HEAD
    return weight_file(path)


def _read_head(file: Path) -> dict[str, Tensor]:
    """The head's tensors without a common prefix."""
    content = read_weights(file)
    found = content if isinstance(content, Mapping) else {}
    names = [name for name in found if str(name).endswith(FIRST)]
    if len(names) != 1 or getattr(found[names[0]], "ndim", 0) != 2:
        raise CheckpointError(
            f"{file} is no SongEval head: expected one matrix named ...{FIRST}, found {len(names)}"
        )
    prefix = names[0].removesuffix(FIRST)
    return {name.removeprefix(prefix): value for name, value in found.items()}
