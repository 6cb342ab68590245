"""The models of a reward and the encoders that they share.

A single model is a panel of one without a name. Every distinct encoder runs once, whatever the
number of models that read its features.

Shape key: B = songs, T = samples, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apex_reward.audio.loudness import loudness_gain
from apex_reward.errors import UsageError
from apex_reward.model.encode import (
    EncodedModel,
    Lengths,
    Prompts,
    SongEncoder,
    check_prompts,
    encoded_songs,
)
from apex_reward.model.inputs import checked_songs
from apex_reward.prompt import Prompt
from apex_reward.rewards.protocol import RewardModel, check_gradient
from apex_reward.scores.scores import Scores


@dataclass(frozen=True)
class Member:
    """One model: its name in the panel (None alone), and which encoders it reads.

    `encoders` is None for a model that is called with waveforms instead.
    """

    name: str | None
    model: RewardModel
    encoders: tuple[int, ...] | None


class Members:
    """The models of a reward and the distinct encoders behind them.

    Args:
        models: by name (text); the name is None for a model that is no panel.
    """

    def __init__(self, models: Mapping[Any, RewardModel]) -> None:
        self.encoders: list[SongEncoder] = []
        self.members: list[Member] = []
        known: dict[Hashable, int] = {}
        for name, model in models.items():
            numbers = None
            if isinstance(model, EncodedModel):
                # One model shares no encoder: its weights need no hash.
                keys = [
                    e.fingerprint() if len(models) > 1 else i for i, e in enumerate(model.encoders)
                ]
                for key, encoder in zip(keys, model.encoders, strict=True):
                    if key not in known:
                        known[key] = len(self.encoders)
                        self.encoders.append(encoder)
                numbers = tuple(known[key] for key in keys)
            self.members.append(Member(name, model, numbers))

    @property
    def device(self) -> torch.device:
        """Where the models are; the CPU for those without a device."""
        devices = [getattr(member.model, "device", None) for member in self.members]
        return next((d for d in devices if isinstance(d, torch.device)), torch.device("cpu"))

    @property
    def takes_waveforms(self) -> bool:
        """Whether any model is called with waveforms."""
        return any(member.encoders is None for member in self.members)

    @property
    def reads_channels(self) -> bool:
        """Whether any model reads the channels of a song, not their mono mix."""
        return any(_reads_channels(member.model) for member in self.members)

    def to(self, device: str) -> None:
        """Move the models that are torch modules, and others that have a method `to`."""
        for member in self.members:
            model: Any = member.model
            if isinstance(model, torch.nn.Module):
                torch.nn.Module.to(model, device)
            elif hasattr(model, "to"):
                model.to(device)

    def forward(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None,
        prompts: Prompts = None, loudness: float | None = None, batch_segments: int | None = None,
    ) -> tuple[Scores, list[Tensor]]:  # fmt: skip
        """Scores of all models side by side, and the encoders' song features, on the graph.

        Args:
            waveforms: (B, T) or (B, C, T) in [-1, 1], zero-padded on the right.
            loudness: LUFS that every song's mono mix is brought to first; None leaves it.
        """
        for member in self.members:
            check_gradient(member.model, waveforms)
        self.check_prompts(prompts, len(waveforms))
        if len(waveforms) == 0:
            raise UsageError("the batch holds no songs; give at least one")
        mono, ends = checked_songs(waveforms, lengths)
        wide = waveforms if self.reads_channels and waveforms.ndim == 3 else mono
        if loudness is not None:
            gain = loudness_gain(mono, sample_rate, loudness, ends)
            mono = mono * gain[:, None]
            wide = mono if wide.ndim == 2 else wide * gain[:, None, None]
        features = encoded_songs(self.encoders, mono, sample_rate, ends, batch_segments)
        called = self.call_models(wide, sample_rate, ends, prompts)
        return self.score(features, called, prompts), features

    def call_models(
        self, waveforms: Tensor, sample_rate: int, ends: Lengths, prompts: Prompts
    ) -> dict[int, Scores]:
        """Scores of songs by the models that take waveforms, by their number.

        Args:
            waveforms: (B, T), or (B, C, T): a model that does not read channels has their mean.

        Raises:
            UsageError: a model gave other heads than its own.
        """
        mono = waveforms.mean(dim=1) if waveforms.ndim == 3 else waveforms
        called = {}
        for number, member in enumerate(self.members):
            if member.encoders is None:
                songs = waveforms if _reads_channels(member.model) else mono
                texts = self.texts(member, prompts, len(mono))
                scores = member.model(songs, sample_rate, lengths=ends, prompts=texts)
                called[number] = _own_heads(member.model, scores)
        return called

    def score(
        self, features: Sequence[Tensor], called: Mapping[int, Scores], prompts: Prompts
    ) -> Scores:
        """Scores of songs whose features are known, all models side by side on one device.

        Args:
            features: (B, ...) of each encoder.
            called: what `call_models` gave.
        """
        device = features[0].device if features else self.device
        songs = len(features[0]) if features else next(iter(called.values())).songs
        found = []
        for number, member in enumerate(self.members):
            if member.encoders is None:
                scores = called[number].apply(lambda value: value.to(device))
            else:
                model: Any = member.model
                own = [features[i] for i in member.encoders]
                scores = model.score_features(own, self.texts(member, prompts, songs))
            found.append(scores if member.name is None else scores.renamed(member.name))
        return found[0] if len(found) == 1 else Scores.side_by_side(found)

    def check_prompts(self, prompts: Prompts, songs: int) -> None:
        """Raises UsageError where a model reads prompts and there are none, or too few."""
        for member in self.members:
            self.texts(member, prompts, songs)

    def texts(self, member: Member, prompts: Prompts, songs: int) -> list[Prompt] | None:
        """The prompts as a model takes them: `Prompt`s, or None where it reads none."""
        return check_prompts(member.model.name, member.model.reads_text, prompts, songs)

    def embeddings(self, features: Sequence[Tensor]) -> Tensor | None:
        """Song embeddings (B, W) of a single model that has them; None otherwise."""
        made = self._own("embeddings_of")
        return None if made is None or not features else made(features)

    def song_vectors(self, features: Sequence[Tensor]) -> Tensor | None:
        """What songs are compared by (B, W); None where no model has an encoder.

        The embeddings of a single model, else the first encoder's features.
        """
        if not features:
            return None
        made = self.embeddings(features)
        return (features[0] if made is None else made).flatten(1)

    def unfamiliarity(self, features: Sequence[Tensor]) -> Tensor | None:
        """How far (B,) songs lie from a model's training songs; above 1 is far.

        Of several models with such statistics the largest value counts.
        """
        values = []
        for member in self.members:
            model: Any = member.model
            if member.encoders and hasattr(model, "unfamiliarity"):
                own = [features[i] for i in member.encoders]
                values.append(model.unfamiliarity(model.embeddings_of(own)))
        known = [value for value in values if value is not None]
        return torch.stack(known).amax(dim=0) if known else None

    def _own(self, name: str) -> Any:
        return getattr(self.members[0].model, name, None) if len(self.members) == 1 else None


def _reads_channels(model: RewardModel) -> bool:
    return bool(getattr(model, "reads_channels", False))


def _own_heads(model: RewardModel, scores: Scores) -> Scores:
    """The scores under the heads of the model, with their ranges."""
    names = [head.name for head in model.heads]
    if list(scores) == names:
        return Scores(dict(scores), list(model.heads), scores.ensembles)
    return Scores({name: scores[name] for name in names}, list(model.heads))
