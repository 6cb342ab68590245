"""Rulers as a reward model: plain measures of a song beside which a reward can be compared.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from apex_reward.model.encode import Lengths, Prompts
from apex_reward.model.inputs import checked_songs
from apex_reward.model.licences import CODE, Licence
from apex_reward.model.source import Source
from apex_reward.rewards.guards.rulers import RULERS, RulerSong
from apex_reward.rewards.protocol import check_gradient
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores


class Rulers:
    """Length, loudness, brightness, rhythm and form of songs; no head has a better direction.

    `apex_reward.rewards.guards.rulers` defines each head. Songs are measured at their own rate and
    with their channels. Not differentiable.
    """

    name = "rulers"
    heads = tuple(Head(name) for name in RULERS)
    sample_rate = 24_000
    differentiable = False
    reads_text = False
    reads_channels = True
    licences: ClassVar[list[Licence]] = [CODE]

    def __init__(self) -> None:
        self.source = Source(self.name)

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """The rulers of songs (B, T) or (B, C, T), each at its own length.

        Raises:
            UsageError: wrong shapes, more than six channels, or a rate below 4 kHz.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        check_gradient(self, waveforms)
        _, ends = checked_songs(waveforms, lengths)
        with torch.no_grad():
            songs = [
                RulerSong(song[..., :end].float(), sample_rate)
                for song, end in zip(waveforms, ends, strict=True)
            ]
            values = [torch.stack([m(song).float() for m in RULERS.values()]) for song in songs]
        return Scores.from_stack(torch.stack(values).to(waveforms.device), self.heads)
