"""The models of a reward, the encoders that they share, and `Panel`: several models as one.

Every distinct encoder runs once, whatever the number of models that read its features.

Shape key: B = songs, C = channels, T = samples, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apex_reward.audio.decoding import DecodeSettings
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
from apex_reward.rewards.protocol import RewardModel, check_gradient, check_model
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

WHOLE_SECONDS = 10.0


@dataclass(frozen=True)
class Member:
    """One model: its name in the panel (None alone), and which encoders it reads.

    `encoders` is None for a model that is called with waveforms instead.
    """

    name: str | None
    model: Any
    encoders: tuple[int, ...] | None

    @property
    def reads_channels(self) -> bool:
        """Whether it reads the channels of a song, not their mono mix."""
        return bool(getattr(self.model, "reads_channels", False))


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
            own = model.encoders if isinstance(model, EncodedModel) else ()
            # One model shares no encoder: its weights need no hash.
            keys = [e.fingerprint() if len(models) > 1 else i for i, e in enumerate(own)]
            for key, encoder in zip(keys, own, strict=True):
                if key not in known:
                    known[key] = len(self.encoders)
                    self.encoders.append(encoder)
            self.members.append(Member(name, model, tuple(known[key] for key in keys) or None))

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
        return any(member.reads_channels for member in self.members)

    @property
    def decode_settings(self) -> DecodeSettings:
        """Segment length and rate of the first encoder; ten seconds where it has no windows."""
        rate, window = self.members[0].model.sample_rate, None
        if self.encoders:
            rate, window = self.encoders[0].sample_rate, self.encoders[0].window
        seconds = WHOLE_SECONDS if window is None else window / rate
        return DecodeSettings(seconds, rate, channels=self.reads_channels)

    def to(self, device: str) -> None:
        """Move the models that are torch modules, and others that have a method `to`."""
        for member in self.members:
            if isinstance(member.model, torch.nn.Module):
                torch.nn.Module.to(member.model, device)
            elif hasattr(member.model, "to"):
                member.model.to(device)

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
            UsageError: a model gave other heads, or another number of members, than its own.
        """
        mono = waveforms.mean(dim=1) if waveforms.ndim == 3 else waveforms
        called = {}
        for number, member in enumerate(self.members):
            if member.encoders is None:
                songs = waveforms if member.reads_channels else mono
                texts = _texts(member, prompts, len(mono))
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
                own = [features[i] for i in member.encoders]
                scores = member.model.score_features(own, _texts(member, prompts, songs))
            found.append(scores if member.name is None else scores.renamed(member.name))
        return found[0] if len(found) == 1 else Scores.side_by_side(found)

    def check_prompts(self, prompts: Prompts, songs: int) -> None:
        """Raises UsageError where a model reads prompts and there are none, or too few."""
        for member in self.members:
            _texts(member, prompts, songs)

    def vectors(self, features: Sequence[Tensor]) -> Tensor | None:
        """What songs are compared by (B, W); None where no model has an encoder.

        The embeddings of a single model that has them, else the first encoder's features.
        """
        if not features:
            return None
        model = self.members[0].model
        if len(self.members) == 1 and hasattr(model, "embeddings_of"):
            features = [model.embeddings_of(features)]
        return features[0].flatten(1)

    def unfamiliarity(self, features: Sequence[Tensor]) -> Tensor | None:
        """How far (B,) songs lie from a model's training songs; above 1 is far.

        Of several models with such statistics the largest value counts.
        """
        values = []
        for member in self.members:
            if member.encoders and hasattr(member.model, "unfamiliarity"):
                own = [features[i] for i in member.encoders]
                values.append(member.model.unfamiliarity(member.model.embeddings_of(own)))
        known = [value for value in values if value is not None]
        return torch.stack(known).amax(dim=0) if known else None


class Panel(Members):
    """Several reward models as one: songs are resampled once per rate, encoders shared.

    Args:
        models: by name, or in order under their own names; heads are called `name.head`.

    Raises:
        UsageError: none, or two of one name.
    """

    name = "panel"

    def __init__(self, models: Mapping[str, RewardModel] | Sequence[RewardModel]) -> None:
        if isinstance(models, Mapping):
            named = [(str(name), model) for name, model in models.items()]
        else:
            named = [(model.name, model) for model in models]
        names = [name for name, _ in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"two models of a panel are called {', '.join(twice)}; give them names of their "
                "own: {'first': ..., 'second': ...}"
            )
        if not named:
            raise UsageError("a panel needs at least one reward model")
        self.models: dict[str, RewardModel] = {n: check_model(model, n) for n, model in named}
        super().__init__(self.models)
        self.heads = tuple(
            Head(f"{name}.{head.name}", head.low, head.high)
            for name, model in self.models.items()
            for head in model.heads
        )
        # Songs are best given at the highest of the models' rates.
        self.sample_rate = max(model.sample_rate for model in self.models.values())
        self.differentiable = all(model.differentiable for model in self.models.values())
        self.reads_text = any(model.reads_text for model in self.models.values())

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of songs (B, T) or (B, C, T) by every member, on the autograd graph.

        Args and errors as in any `RewardModel`; prompts go to the members that read them.
        """
        return self.forward(waveforms, sample_rate, lengths, prompts)[0]


def members_of(model: RewardModel) -> Members:
    """The models of a panel, or a single model, with their encoders."""
    return model if isinstance(model, Panel) else Members({None: model})


def _texts(member: Member, prompts: Prompts, songs: int) -> Prompts:
    """The prompts as a model takes them: `Prompt`s, or None where it reads none."""
    return check_prompts(member.model.name, member.model.reads_text, prompts, songs)


def _own_heads(model: RewardModel, scores: Scores) -> Scores:
    """The scores under the heads of the model, with their ranges."""
    names = [head.name for head in model.heads]
    ensembles = scores.ensembles if set(scores) == set(names) else ()
    given, known = max([1, *(len(m) for _, m in ensembles)]), getattr(model, "members", 1)
    if given != known:
        raise UsageError(
            f"{model.name} gave scores of {given} members; its attribute `members` is {known}"
        )
    return Scores({name: scores[name] for name in names}, list(model.heads), ensembles)
