"""MuQ-Eval A1: mean opinions of a song's first ten seconds, over MuQ (arXiv 2603.22677).

The published file was not seen when this was written: layout and arithmetic follow its authors'
description. The reader is strict and lists every name and shape that differs, so a file that is
laid out otherwise is refused and never scored wrongly.

Shape key: B = songs, n = samples, F = frames (25 a second), W = MuQ's width (1024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apex_reward.audio.segment import Segments
from apex_reward.errors import CheckpointError
from apex_reward.model.encode import EncodedModel, Prompts
from apex_reward.model.encoders.muq import SAMPLE_RATE, MuqConfig, MuqEncoder, MuqSongs
from apex_reward.model.encoders.muq_files import (
    ANCHOR,
    PUBLISHED_MUQ,
    load_muq,
    read_muq_config,
    split_muq,
)
from apex_reward.model.files import (
    check_tensors,
    encoder_path,
    hub_options,
    in_float32,
    local_path,
    read_config,
    read_model,
    read_weights,
    weight_file,
    write_folder,
)
from apex_reward.model.licences import CODE, HUB, MUQ, Licence, licence
from apex_reward.model.precision import FrozenModel, in_full_precision, placed
from apex_reward.model.source import Source, with_source
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
MODEL_TYPE = "apex_reward_muq_eval"
# Published prefixes of tensors and ours.
NAMES = {"encoder.pooling.": "pooling.", "heads.": "opinions."}
ATTENTION, INNER = "encoder.pooling.attention.0.weight", "heads.MI.mlp.0.weight"
# The published keys, in words.
HEADS = {"MI": Head("musical_impression"), "TA": Head("text_alignment")}


class MuQEval(EncodedModel, FrozenModel):
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

    name = "muq-eval"
    licences: ClassVar[list[Licence]] = [
        CODE, licence("MuQ-Eval A1 head", "MIT", True, HUB + PUBLISHED), MUQ
    ]  # fmt: skip

    def __init__(
        self, muq: MuqConfig | None = None, attention: int = 128, inner: int = 512
    ) -> None:
        super().__init__()
        config = muq or MuqConfig()
        self.inner_widths = {"attention": attention, "inner": inner}
        self.encoder = MuqEncoder(config, layer=config.depth)
        self.pooling = AttentionPooling(config.width, attention)
        self.opinions = nn.ModuleDict({key: Opinion(config.width, inner) for key in HEADS})
        self.requires_grad_(False)
        self.eval()

    @property
    def heads(self) -> tuple[Head, ...]:
        """Two heads without bounds."""
        return tuple(HEADS.values())

    @property
    def encoders(self) -> tuple[MuqSongs, ...]:
        """MuQ with the attention pooling; its song feature is (B, W)."""
        return (_FirstTenSeconds(self.encoder, self.pooling),)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of song features, one (B, W) tensor."""
        values = [in_full_precision(opinion, features[0]) for opinion in self.opinions.values()]
        return Scores.from_stack(torch.cat(values, dim=1), self.heads)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`, whole or not at all."""
        config = {"model_type": MODEL_TYPE, "muq": asdict(self.encoder.config), **self.inner_widths}
        write_folder(folder, config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "muq-eval", *, encoder: str | Path | None = None, **options: Any
    ) -> MuQEval:
        """Load a folder of `save_pretrained`, or the published file.

        Args:
            name: a folder, or `muq-eval` or its hub id for the published one.
            encoder: as in `from_published`.
            options: `dtype` of the encoder (the rest keeps float32), `device_map`, and the hub's
                (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: nothing there, not such a model, or any missing, extra or misshapen
                tensor.
        """
        hub = hub_options(options)
        short = str(name) == cls.name and not Path(name).exists()
        path = local_path(PUBLISHED if short else name, **hub)
        ours = (path / "config.json").is_file() and read_config(path).get(
            "model_type"
        ) == MODEL_TYPE
        if not ours:
            model = cls.from_published(path, encoder, **options, **hub)
            return with_source(model, Source.of_kind(cls.name, name, encoder=encoder, **hub))
        model = read_model(
            path, MODEL_TYPE,
            lambda c: _empty(MuqConfig(**c["muq"]), c["attention"], c["inner"]),
        )  # fmt: skip
        return with_source(placed(model, **options), Source.of_kind(cls.name, name, **hub))

    @classmethod
    def from_published(
        cls,
        predictor: str | Path = PUBLISHED,
        encoder: str | Path | None = None,
        **options: Any,
    ) -> MuQEval:
        """Read the published `model_state_dict.pt`.

        Args:
            predictor: that file, or a folder or hub id that holds it.
            encoder: folder or hub id of a MuQ: gives its sizes, and its weights where the file
                holds none. None takes the published sizes, or the hub's MuQ for the weights.
            options: as in `from_pretrained`.

        Raises:
            CheckpointError: as in `from_pretrained`.
        """
        hub = hub_options(options)
        file = weight_file(local_path(predictor, **hub))
        try:
            content = read_weights(file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. What helps: {HOW}") from error
        own = _own_tensors(file, content)
        other = {name: value for name, value in content.items() if name not in own}
        holds_muq = any(str(name).endswith(ANCHOR) for name in other)
        folder = (
            None if encoder is None and holds_muq else encoder_path(encoder or PUBLISHED_MUQ, **hub)
        )
        config = MuqConfig() if folder is None else read_muq_config(folder)
        model = _empty(config, own[ATTENTION].shape[0], own[INNER].shape[0])
        source = file if folder is None or holds_muq else weight_file(folder)
        muq, unknown = split_muq(source, other if holds_muq else read_weights(source))
        if not holds_muq:
            unknown = other
        expected = {
            name: value
            for name, value in _published(model.state_dict()).items()
            if name.startswith(tuple(NAMES))
        }
        check_tensors(file, {**own, **unknown}, expected)
        load_muq(source, model.encoder, muq)
        model.load_state_dict(in_float32(_ours(own)), assign=True, strict=False)
        named = Source.of_kind(cls.name, predictor, encoder=encoder, **hub)
        return with_source(placed(model, **options), named)


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


class _FirstTenSeconds(MuqSongs):
    """The first ten seconds of a song, in one pass through MuQ and the attention pooling."""

    def __init__(self, muq: MuqEncoder, pooling: AttentionPooling) -> None:
        super().__init__(muq)
        self.pooling = pooling

    def cut(self, songs: Tensor, lengths: Sequence[int]) -> Segments:
        """One song (1, T) to its first ten seconds (1, n)."""
        return super().cut(songs, [min(lengths[0], FIRST_SAMPLES)])

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """The feature (1, W) of one song (1, n)."""
        return in_full_precision(self.pooling, self.muq(samples))

    def weights(self) -> Sequence[nn.Module]:
        """MuQ and the pooling."""
        return (self.muq, self.pooling)


def _own_tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """Pooling and outputs under their published names, enough of them to know their sizes."""
    found = content if isinstance(content, Mapping) else {}
    own = {name: value for name, value in found.items() if str(name).startswith(tuple(NAMES))}
    lacking = [name for name in (ATTENTION, INNER) if getattr(own.get(name), "ndim", 0) != 2]
    if lacking:
        raise CheckpointError(
            f"{file} is no MuQ-Eval A1 as its authors describe it: expected matrices "
            f"{' and '.join(lacking)} in a plain state dict (model_state_dict.pt)"
        )
    return own


def _empty(config: MuqConfig, attention: int, inner: int) -> MuQEval:
    with torch.device("meta"):
        return MuQEval(config, attention, inner)


def _published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, {ours: published for published, ours in NAMES.items()})


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, NAMES)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in names if name.startswith(prefix)), "")
        renamed[names.get(old, "") + name.removeprefix(old)] = value
    return renamed
