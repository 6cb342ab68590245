"""`RewardModel`: anything that turns songs, and prompts if it reads them, into heads.

Shape key: B = batch of songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.model.encode import Prompts
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

ATTRIBUTES = ("name", "heads", "sample_rate", "differentiable", "reads_text")


@runtime_checkable
class RewardModel(Protocol):
    """What every command and every stack needs of a reward model.

    Attributes:
        name: short; in a panel its heads are called `name.head`.
        heads: the named outputs with their ranges, in order; higher is better.
        sample_rate: Hz that it hears songs at; it takes any and resamples.
        differentiable: whether gradients reach the waveform.
        reads_text: whether it judges a song by its prompt.
        members: only an ensemble has it: the number of members in its `Scores`.
    """

    @property
    def name(self) -> str:
        """Short; heads of a panel are named after it."""

    @property
    def heads(self) -> Sequence[Head]:
        """Its outputs with their ranges, in order."""

    @property
    def sample_rate(self) -> int:
        """Hz that it hears songs at; it takes any and resamples."""

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the waveform."""

    @property
    def reads_text(self) -> bool:
        """Whether it judges a song by its prompt."""

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Any = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of songs (B, T) or (B, C, T) in [-1, 1], zero-padded on the right."""


def check_model(model: Any, given: object = None) -> RewardModel:
    """The model, once it has all that a `RewardModel` has.

    Raises:
        UsageError: listing what it lacks.
    """
    missing = [name for name in ATTRIBUTES if not hasattr(model, name)]
    if not callable(model):
        missing.append("__call__(waveforms, sample_rate, lengths=None, prompts=None)")
    if missing:
        raise UsageError(
            f"{given or type(model).__name__} is no reward model: it lacks {', '.join(missing)}"
        )
    if not model.heads or not all(isinstance(head, Head) for head in model.heads):
        raise UsageError(f"{model.name}: heads are {model.heads!r}; expected a tuple of Head")
    return model


def check_gradient(model: RewardModel, waveforms: Tensor) -> None:
    """Refuse a gradient that the model cannot give.

    Raises:
        UsageError: the waveforms ask for one and the model is not differentiable.
    """
    if waveforms.requires_grad and torch.is_grad_enabled() and not model.differentiable:
        raise UsageError(
            f"{model.name} is not differentiable: no gradient reaches the waveform through it; "
            "score under torch.no_grad(), or leave it out of the reward"
        )
