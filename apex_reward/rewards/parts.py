"""The parts of a reward model: its members, and the encoders that they share.

One model is a panel of one without names. Every distinct encoder is run once, whatever the number
of members that listen through it.

Shape key: B = songs, T = samples, W = embedding width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apex_reward.model.encode import (
    EncodedModel,
    Lengths,
    Prompts,
    SongEncoder,
    check_prompts,
    song_features,
)
from apex_reward.model.inputs import mono_mix
from apex_reward.rewards.protocol import RewardModel, check_gradient
from apex_reward.scores.scores import Scores


@dataclass(frozen=True)
class Part:
    """One member: its name in the panel (None alone), the model, and which encoders it reads.

    `encoders` is None for a model that is called with waveforms instead.
    """

    name: str | None
    model: RewardModel
    encoders: tuple[int, ...] | None


class Parts:
    """The members of a model and the distinct encoders behind them.

    Args:
        members: models by name (text); the name is None for a model that is no panel.
    """

    def __init__(self, members: Mapping[Any, RewardModel]) -> None:
        self.encoders: list[SongEncoder] = []
        self.parts: list[Part] = []
        known: dict[Hashable, int] = {}
        several = len(members) > 1
        for name, model in members.items():
            numbers = None
            if isinstance(model, EncodedModel):
                numbers = tuple(self._number(e, known, several) for e in model.encoders)
            self.parts.append(Part(name, model, numbers))

    def _number(self, encoder: SongEncoder, known: dict[Hashable, int], several: bool) -> int:
        # A lone model may share an encoder with nobody: its weights need not be hashed.
        key: Hashable = encoder.fingerprint() if several else len(known)
        if key not in known:
            known[key] = len(self.encoders)
            self.encoders.append(encoder)
        return known[key]

    @property
    def device(self) -> torch.device:
        """Where the members are; the CPU for those that do not say."""
        devices = [getattr(part.model, "device", None) for part in self.parts]
        return next((d for d in devices if isinstance(d, torch.device)), torch.device("cpu"))

    def to(self, device: str) -> None:
        """Move the members that are torch modules."""
        for part in self.parts:
            if isinstance(part.model, torch.nn.Module):
                torch.nn.Module.to(part.model, device)

    def hear(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths, prompts: Prompts,
        batch_segments: int | None = None,
    ) -> tuple[Scores, list[Tensor]]:  # fmt: skip
        """Scores of all members side by side, and the encoders' song features behind them."""
        for part in self.parts:
            check_gradient(part.model, waveforms)
        texts = [self.texts(part, prompts, len(waveforms)) for part in self.parts]
        features = song_features(self.encoders, waveforms, sample_rate, lengths, batch_segments)
        found = [
            self._called(part, waveforms, sample_rate, lengths, text)
            if part.encoders is None
            else self._scored(part, features, text)
            for part, text in zip(self.parts, texts, strict=True)
        ]
        return self.joined(found), features

    def score(
        self, features: Sequence[Tensor], called: Mapping[int, Scores], prompts: Prompts
    ) -> Scores:
        """Scores of songs (B, ...) whose features are there already.

        Args:
            called: what the members that take waveforms said, by their number.
        """
        songs = len(features[0]) if features else next(iter(called.values())).songs
        return self.joined(
            [
                called[number]
                if part.encoders is None
                else self._scored(part, features, self.texts(part, prompts, songs))
                for number, part in enumerate(self.parts)
            ]
        )

    def joined(self, found: Sequence[Scores]) -> Scores:
        """Scores of the members side by side, under their names in the panel."""
        named = [
            scores if part.name is None else scores.renamed(part.name)
            for part, scores in zip(self.parts, found, strict=True)
        ]
        return named[0] if len(named) == 1 else Scores.side_by_side(named)

    def check_prompts(self, prompts: Prompts, songs: int) -> None:
        """Raises UsageError where a member reads prompts that are not there."""
        for part in self.parts:
            self.texts(part, prompts, songs)

    def embeddings(self, features: Sequence[Tensor]) -> Tensor | None:
        """Song embeddings (B, W) of a lone model that has them; None otherwise."""
        made = self._own("embeddings_of")
        return None if made is None or not features else made(features)

    def song_vectors(self, features: Sequence[Tensor]) -> Tensor | None:
        """What songs are compared by (B, W); None where no member has an encoder.

        A lone model's embeddings, else the first encoder's features.
        """
        if not features:
            return None
        made = self.embeddings(features)
        return (features[0] if made is None else made).flatten(1)

    def unfamiliarity(self, features: Sequence[Tensor]) -> Tensor | None:
        """How far (B,) songs lie from what a lone model was trained on; above 1 is far."""
        measure, embeddings = self._own("unfamiliarity"), self.embeddings(features)
        return None if measure is None or embeddings is None else measure(embeddings)

    def _own(self, name: str) -> Any:
        return getattr(self.parts[0].model, name, None) if len(self.parts) == 1 else None

    def texts(self, part: Part, prompts: Prompts, songs: int) -> Prompts:
        """The prompts as a member takes them: `Prompt`s, or None where it reads none."""
        return check_prompts(part.model.name, part.model.reads_text, prompts, songs)

    def _scored(self, part: Part, features: Sequence[Tensor], prompts: Prompts) -> Scores:
        model: Any = part.model
        return model.score_features([features[i] for i in part.encoders or ()], prompts)

    def _called(
        self, part: Part, waveforms: Tensor, rate: int, lengths: Lengths, prompts: Prompts
    ) -> Scores:
        return called(part.model, mono_mix(waveforms), rate, lengths, prompts)


def called(
    model: RewardModel, mono: Tensor, sample_rate: int, lengths: Lengths, prompts: Prompts
) -> Scores:
    """Scores (B,) of a model that takes waveforms, under the heads that it announces.

    Raises:
        UsageError: it gave other heads, or another number of songs.
    """
    scores = model(mono, sample_rate, lengths=lengths, prompts=prompts)
    return Scores({head.name: scores[head.name] for head in model.heads}, list(model.heads),
                  getattr(scores, "members", None))  # fmt: skip
