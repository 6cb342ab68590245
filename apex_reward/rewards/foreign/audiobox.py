"""Meta's audiobox-aesthetics as a `RewardModel` (extra `audiobox`); not differentiable.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.model.encode import Lengths, Prompts
from apex_reward.model.inputs import prepare_waveforms
from apex_reward.model.licences import CODE, HUB, Licence, licence
from apex_reward.model.source import Source
from apex_reward.rewards.protocol import check_gradient
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

AXES = {"CE": "enjoyment", "CU": "usefulness", "PC": "complexity", "PQ": "quality"}


class Audiobox:
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
    differentiable = False
    reads_text = False
    licences: ClassVar[list[Licence]] = [
        CODE,
        licence("audiobox-aesthetics code and weights", "CC BY 4.0, parts MIT", True,
                f"{HUB}facebook/audiobox-aesthetics"),
    ]  # fmt: skip

    def __init__(self, predictor: Any = None) -> None:
        self._predictor = _predictor() if predictor is None else predictor
        if predictor is None:
            self.source = Source(self.name)

    def to(self, device: str) -> None:
        """Move the predictor's network."""
        self._predictor.model.to(device)
        self._predictor.device = torch.device(device)

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """The four axes of songs (B, T) or (B, C, T), each scored at its own length."""
        check_gradient(self, waveforms)
        mono, ends = prepare_waveforms(waveforms, sample_rate, lengths, sample_rate)
        songs = [
            {"path": song[None, :end].cpu(), "sample_rate": sample_rate}
            for song, end in zip(mono, ends, strict=True)
        ]
        rows = self._predictor.forward(songs)
        values = mono.new_tensor([_axes(row) for row in rows]).reshape(-1, len(AXES))
        return Scores.from_stack(values, self.heads)


def _axes(row: Any) -> Sequence[float]:
    # Releases up to 0.0.1 return JSON text, later ones mappings.
    values = json.loads(row) if isinstance(row, str) else row
    return [float(values[axis]) for axis in AXES]


def _predictor() -> Any:
    try:
        from audiobox_aesthetics.infer import initialize_predictor
    except ImportError:
        raise UsageError("the model audiobox needs `pip install 'apex-reward[audiobox]'`") from None
    return initialize_predictor()
