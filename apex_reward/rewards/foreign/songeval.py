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
from apex_reward.model.encode import Prompts
from apex_reward.model.encoders.muq import MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.files import local_path, read_model, write_folder
from apex_reward.model.licences import CODE, MUQ, Licence, licence
from apex_reward.model.precision import in_full_precision
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.muq import PUBLISHED_MUQ, MuqModel, PooledMuq
from apex_reward.scores.apex import AESTHETIC_HEADS, APEX_MIXES
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

# SongEval reads this one of MuQ's 13 hidden states (0 is the conformer's input).
LAYER = 6
ATTENTIONS = 4
ATTENTION_HEADS = 8
HEADS = tuple(Head(name, 1.0, 5.0) for name in AESTHETIC_HEADS)
MODEL_TYPE = "apex_reward_songeval"
REPOSITORY = "https://github.com/ASLP-lab/SongEval"
HOW = (
    f"SongEval's files are not on the hub in one piece: `git clone {REPOSITORY}`, `apex-reward "
    "import --kind songeval --predictor SongEval/ckpt/model.safetensors --encoder "
    f"{PUBLISHED_MUQ} --output songeval`, and name that folder (songeval:FOLDER)"
)


class SongEval(MuqModel):
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

    name, heads = "songeval", HEADS
    title, how, head_file, strict = "SongEval head", HOW, "ckpt/model.safetensors", False
    anchors: ClassVar[Mapping[str, str]] = {"feed_forward": "ffd.0.weight"}
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
        width = self.encoder.config.width
        self.widths = {"feed_forward": feed_forward or 4 * width}
        self.head = SongEvalHead(width, self.widths["feed_forward"])
        self.requires_grad_(False)
        self.eval()

    @property
    def encoders(self) -> tuple[MuqSongs, ...]:
        """MuQ with the head's pooling; its song feature is the (B, 2W) input of the last layer."""
        return (PooledMuq(self.encoder, self.head, (self.head.ffd, self.head.attn)),)

    def head_modules(self) -> nn.Module:
        """The head itself has the published names."""
        return self.head

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of song features, one (B, 2W) tensor."""
        values = in_full_precision(self.head.fc, features[0])
        return Scores.from_stack(2 * torch.tanh(values) + 3, HEADS)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`, whole or not at all."""
        config = {"model_type": MODEL_TYPE, "muq": asdict(self.encoder.config)}
        write_folder(folder, {**config, **self.widths}, self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path = "songeval", **hub: Any) -> SongEval:
        """Load a folder of `save_pretrained` or `apex-reward import --kind songeval`.

        Args:
            name: that folder, or a hub id in its layout.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: nothing there, not such a model, or any missing, extra or misshapen
                tensor.
        """
        if str(name) == cls.name:
            raise CheckpointError(HOW)

        def build(config: Mapping[str, Any]) -> SongEval:
            widths = {"feed_forward": config["feed_forward"]}
            return cls._empty(MuqConfig(**config["muq"]), widths)

        model = read_model(local_path(name, **hub), MODEL_TYPE, build)
        return with_source(model, Source.of_kind(cls.name, name, **hub))


class SongEvalHead(nn.Module):
    """Hidden states (N, F, W) to the last layer's input (N, 2W); `fc` makes five values of it.

    Tensor names are those of the published file.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
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
