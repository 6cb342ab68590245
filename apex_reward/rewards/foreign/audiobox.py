"""Meta's audiobox-aesthetics as a `RewardModel` (extra `audiobox`); not differentiable.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from apex_reward.model.encode import Prompts
from apex_reward.model.licences import CODE, HUB, Licence, licence
from apex_reward.model.source import Source
from apex_reward.rewards.foreign.called import CalledModel, extra_module
from apex_reward.scores.head import Head

AXES = {"CE": "enjoyment", "CU": "usefulness", "PC": "complexity", "PQ": "quality"}


class Audiobox(CalledModel):
    """Enjoyment, usefulness, complexity and quality of songs, 1 to 10 (arXiv 2502.05139).

    Args:
        predictor: what `audiobox_aesthetics.infer.initialize_predictor()` returns; None calls it,
            which downloads the weights once, by the rules of that package.

    Raises:
        UsageError: the package is not installed.
    """

    name = "audiobox"
    heads = tuple(Head(name, 1.0, 10.0) for name in AXES.values())
    sample_rate = 16_000
    own_rate = True
    licences: ClassVar[list[Licence]] = [
        CODE,
        licence("audiobox-aesthetics code and weights", "CC BY 4.0, parts MIT", True,
                f"{HUB}facebook/audiobox-aesthetics"),
    ]  # fmt: skip

    def __init__(self, predictor: Any = None) -> None:
        if predictor is None:
            infer = extra_module("audiobox_aesthetics.infer", self.name)
            predictor = infer.initialize_predictor()
            self.source = Source(self.name)
        self._predictor = predictor

    def to(self, device: str) -> None:
        """Move the predictor's network."""
        self._predictor.model.to(device)
        self._predictor.device = torch.device(device)

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """The four axes of each mono song (T,)."""
        rows = self._predictor.forward(
            [{"path": song[None], "sample_rate": sample_rate} for song in songs]
        )
        # Releases up to 0.0.1 return JSON text, later ones mappings.
        values = [json.loads(row) if isinstance(row, str) else row for row in rows]
        return [[float(row[axis]) for axis in AXES] for row in values]
