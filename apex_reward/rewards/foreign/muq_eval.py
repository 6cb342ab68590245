"""MuQ-Eval A1: mean opinions of a song's first ten seconds, over MuQ (arXiv 2603.22677).

The published file was not seen when this was written: layout and arithmetic follow its authors'
description. The reader is strict and lists every name and shape that differs, so a file that is
laid out otherwise is refused and never scored wrongly.

Shape key: B = songs, n = samples, F = frames (25 a second), W = MuQ's width (1024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apex_reward.audio.segment import Segments
from apex_reward.model.encode import Prompts
from apex_reward.model.encoders.muq import SAMPLE_RATE, MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.licences import CODE, HUB, MUQ, Licence, licence
from apex_reward.model.precision import in_full_precision
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.muq import MuqModel, PooledMuq
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

PUBLISHED = "zhudi2825/MuQ-Eval-A1"
FIRST_SAMPLES = 10 * SAMPLE_RATE
HOW = (
    f"take the plain file model_state_dict.pt of {PUBLISHED}; best_model.pt is a pickle with the "
    "training's configuration. If you trust the source of a pickle, make a plain file of it once, "
    "outside this package: `torch.save(torch.load(FILE, weights_only=False)['model_state_dict'], "
    "'model_state_dict.pt')`"
)
# The published keys, in words.
HEADS = {"MI": Head("musical_impression"), "TA": Head("text_alignment")}


class MuQEval(MuqModel):
    """MuQ-Eval A1 as a reward model: musical impression and text alignment.

    Both are mean opinions on a scale of 1 to 5, without a clamp, so without bounds. The model
    encodes the first 10 s of a song at 24 kHz mono; a shorter song is not padded, as in the script
    of TuneJury's authors. It reads no text: its text alignment is a guess from the audio alone.
    Always in eval mode; weights are frozen, gradients reach the waveform.

    Args:
        muq: MuQ's sizes; None takes the published ones.
        attention: inner width of the attention pooling.
        inner: inner width of each of the two outputs.
    """

    name, heads = "muq-eval", tuple(HEADS.values())
    title, how = "MuQ-Eval A1 as its authors describe it", HOW
    anchors: ClassVar[Mapping[str, str]] = {
        "attention": "encoder.pooling.attention.0.weight",
        "inner": "heads.MI.mlp.0.weight",
    }
    licences: ClassVar[list[Licence]] = [
        CODE, licence("MuQ-Eval A1 head", "MIT", True, HUB + PUBLISHED), MUQ
    ]  # fmt: skip

    def __init__(
        self, muq: MuqConfig | None = None, attention: int = 128, inner: int = 512
    ) -> None:
        super().__init__()
        config = muq or MuqConfig()
        self.widths = {"attention": attention, "inner": inner}
        self.encoder = MuqEncoder(config, layer=config.depth)
        self.pooling = AttentionPooling(config.width, attention)
        self.opinions = nn.ModuleDict({key: Opinion(config.width, inner) for key in HEADS})
        self.requires_grad_(False)
        self.eval()

    @property
    def encoders(self) -> tuple[MuqSongs, ...]:
        """MuQ with the attention pooling; its song feature is (B, W)."""
        return (_FirstTenSeconds(self.encoder, self.pooling),)

    def head_modules(self) -> nn.Module:
        """Pooling and opinions under their published names."""
        encoder = nn.ModuleDict({"pooling": self.pooling})
        return nn.ModuleDict({"encoder": encoder, "heads": self.opinions})

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of song features, one (B, W) tensor."""
        values = [in_full_precision(opinion, features[0]) for opinion in self.opinions.values()]
        return Scores.from_stack(torch.cat(values, dim=1), self.heads)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "muq-eval", *, encoder: str | Path | None = None, **hub: Any
    ) -> MuQEval:
        """Load the published file.

        Args:
            name: that file, its folder or hub id; `muq-eval` is the published one.
            encoder, hub: as in `from_published`.

        Raises:
            CheckpointError: as in `from_published`.
        """
        path = PUBLISHED if str(name) == cls.name else name
        model = cls.from_published(path, encoder, **hub)
        return with_source(model, Source.of_kind(cls.name, name, encoder=encoder, **hub))


class AttentionPooling(nn.Module):
    """Hidden states (N, F, W) to (N, W): a mean over time with learned weights."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """The pooled states; the weights are a softmax over the frames."""
        return (self.attention(hidden).softmax(dim=1) * hidden).sum(dim=1)


class Opinion(nn.Module):
    """Song features (B, W) to one mean opinion (B, 1); published indices 0 and 3 hold weights."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Identity(), nn.Linear(inner, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """The opinions, unclamped."""
        return self.mlp(features)


class _FirstTenSeconds(PooledMuq):
    """The first ten seconds of a song, in one pass through MuQ and the attention pooling."""

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """One song (1, T) to its first ten seconds (1, n)."""
        return super().cut(songs, [min(lengths[0], FIRST_SAMPLES)])
