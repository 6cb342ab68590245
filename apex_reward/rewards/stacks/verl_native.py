"""verl-omni's native reward models: a reward that the trainer holds and moves off its device.

In `reward.models`: `backend: native` and `executor.model:
apex_reward.rewards.stacks.verl_native:ApexNativeReward`, with the reward file as its model path.
The score function, `compute_score` of `apex_reward.rewards.stacks.verl`, gets it as `reward_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from apex_reward.errors import UsageError
from apex_reward.rewards.judge import Judge, Scale, Undecodable
from apex_reward.rewards.stacks.samples import numbers, reward_of


class ApexNativeReward:
    """A reward on a device, with the methods that verl-omni calls.

    Args:
        model_path: a reward file (`.yaml`), or a model's name for its default mix.
        device: where it scores.
        undecodable, scale: as in `Judge`; None is refused, because the score must be finite.
        options: `mix`, `loudness`, `guards`, `caution` of a model that is named without a file.

    Raises:
        UsageError: as `Reward` and `Judge`; options beside a reward file.
    """

    def __init__(
        self,
        model_path: str,
        device: str | None = None,
        *,
        undecodable: Undecodable = "floor",
        scale: Scale = "none",
        **options: Any,
    ) -> None:
        if undecodable is None:
            raise UsageError("undecodable is None; verl-omni needs a finite number, or 'floor'")
        reward = reward_of(model_path, device, **options)
        self._judge: Judge | None = Judge(reward, undecodable=undecodable, scale=scale)

    @property
    def judge(self) -> Judge:
        """The judge; raises UsageError after `close`."""
        if self._judge is None:
            raise UsageError("the reward model is closed; build another one")
        return self._judge

    def infer(self, audio: Any, prompt: Any = None, sample_rate: int | None = None) -> Any:
        """Score and heads of a song, all finite; of a list of songs, a list of them.

        Args:
            audio: as `apex_reward.rewards.songs.song_of` takes it; None is no song.
            prompt: its prompt; a list beside a list of songs.
            sample_rate: Hz of bare samples.
        """
        several = isinstance(audio, list)
        songs: Sequence[Any] = audio if several else [audio]
        prompts = prompt if several else [prompt]
        found = self.judge(songs, prompts, sample_rate=sample_rate)
        answers = [numbers(answer) for answer in self.judge.answers(found)]
        return answers if several else answers[0]

    def to(self, device: str) -> ApexNativeReward:
        """Move the models."""
        self.judge.reward.to(device)
        return self

    def offload(self) -> None:
        """Move the models to the CPU."""
        self.judge.reward.offload()

    def onload(self) -> None:
        """Move the models back."""
        self.judge.reward.onload()

    def close(self) -> None:
        """Drop the models; only `close` may follow."""
        self._judge = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
