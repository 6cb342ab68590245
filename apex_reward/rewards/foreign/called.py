"""What models that are called with waveforms share, and what models read of the prompts.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

from torch import Tensor

from apex_reward.errors import UsageError, listed
from apex_reward.model.encode import Lengths, Prompts, check_prompts
from apex_reward.model.inputs import at_rate, checked_songs
from apex_reward.rewards.protocol import check_gradient
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores


class CalledModel:
    """Base of reward models that score songs one by one; not differentiable.

    A subclass defines `name`, `heads` and `score_songs`. `sample_rate` is what songs are resampled
    to, unless `own_rate` keeps theirs. `reads_channels` keeps their channels and rate.
    """

    name: str
    heads: tuple[Head, ...]
    sample_rate: int
    differentiable = False
    reads_text = False
    own_rate = False
    reads_channels = False

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of songs (B, T) or (B, C, T), each judged at its own length.

        Raises:
            UsageError: a gradient is asked for, a song lacks the text that the model reads, or a
                wrong shape or length.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        check_gradient(self, waveforms)
        texts = check_prompts(self.name, self.reads_text, prompts, len(waveforms))
        rate = sample_rate if self.own_rate or self.reads_channels else self.sample_rate
        mono, ends = checked_songs(waveforms, lengths)
        mono, ends = at_rate(mono, ends, sample_rate, rate)
        songs = waveforms.detach() if self.reads_channels else mono.detach().cpu()
        cut = [song[..., :end] for song, end in zip(songs, ends, strict=True)]
        values = mono.new_tensor(self.score_songs(cut, rate, texts))
        return Scores.from_stack(values.reshape(-1, len(self.heads)), self.heads)

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """A value of each head for each song: mono (T,) on the CPU, or with its channels (C, T)."""
        raise NotImplementedError


def texts_of(
    name: str, prompts: Prompts, key: Literal["prompt", "lyrics"], empty: bool = False
) -> list[str]:
    """One text per `Prompt`: the prompt itself or its lyrics.

    Args:
        name: of the model, for messages.
        prompts: as `check_prompts` gives them.
        key: which text.
        empty: whether a text may be empty or missing.

    Raises:
        UsageError: songs without the text.
    """
    texts = [str(p if key == "prompt" else p.lyrics or "").strip() for p in prompts or ()]
    if not empty and (without := [song for song, text in enumerate(texts) if not text]):
        raise UsageError(
            f"{name} needs the {key} of every song; empty for songs {listed(without)} of the batch"
        )
    return texts


def extra_module(module: str, extra: str) -> Any:
    """A module that an extra of this package brings; raises UsageError where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"the model {extra} needs `pip install 'apex-reward[{extra}]'`") from None
