"""Rulers as a reward model: plain measures of a song beside which a reward can be compared.

Shape key: C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from apex_reward.model.encode import Prompts
from apex_reward.model.licences import CODE, Licence
from apex_reward.model.source import Source
from apex_reward.rewards.foreign.called import CalledModel
from apex_reward.rewards.guards.rulers import RULERS, RulerSong
from apex_reward.scores.head import Head


class Rulers(CalledModel):
    """Length, loudness, brightness, rhythm and form of songs; no head has a better direction.

    `apex_reward.rewards.guards.rulers` defines each head. Songs are measured at their own rate and
    with their channels. Not differentiable.
    """

    name = "rulers"
    heads = tuple(Head(name) for name in RULERS)
    sample_rate = 24_000
    reads_channels = True
    licences: ClassVar[list[Licence]] = [CODE]

    def __init__(self) -> None:
        self.source = Source(self.name)

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """The rulers of songs (T,) or (C, T); raises UsageError for a rate below 4 kHz."""
        measured = [RulerSong(song.float(), sample_rate) for song in songs]
        return [[float(measure(song)) for measure in RULERS.values()] for song in measured]
