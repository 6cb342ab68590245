"""Flow-Factory: a pointwise reward model for audio, named by its path in the configuration.

rewards:
  - reward_model: apex_reward.rewards.stacks.flow_factory.ApexFlowReward
    reward: reward.yaml          # further keys of the entry arrive as extra_kwargs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from apex_reward.errors import UsageError
from apex_reward.rewards.stacks.samples import judge_with

if TYPE_CHECKING:
    Base: type = object
    RewardModelOutput: Any = None
else:
    try:
        from flow_factory.rewards.abc import PointwiseRewardModel as Base
        from flow_factory.rewards.abc import RewardModelOutput
    except ImportError:  # the class has their shape without them, for tests and other callers
        from types import SimpleNamespace as RewardModelOutput

        Base = object


class ApexFlowReward(Base):
    """Songs and prompts to rewards.

    Args:
        config: its `extra_kwargs` hold `reward`, a reward file or a model's name, and perhaps
            `undecodable` and `scale`, as in `apex_reward.rewards.judge.Judge`.
        accelerator: Flow-Factory's.
    """

    required_fields = ("prompt", "audio")
    use_tensor_inputs = True

    def __init__(self, config: Any, accelerator: Any = None) -> None:
        if Base is not object:
            super().__init__(config, accelerator)
        self.judge = judge_with(config.extra_kwargs)

    def __call__(
        self,
        prompt: Sequence[str],
        audio: Sequence[Any] | None = None,
        audio_sample_rate: Sequence[int] | None = None,
        **others: Any,
    ) -> Any:
        """A `RewardModelOutput` with finite `rewards` (B,); `extra_info` holds the heads.

        Args:
            prompt: B texts.
            audio: B waveforms (C, T) in [-1, 1], tensors or arrays.
            audio_sample_rate: B rates, Hz.

        Raises:
            UsageError: no audio, or no rates.
        """
        if audio is None or not audio_sample_rate:
            raise UsageError("audio and audio_sample_rate are needed; this reward scores songs")
        songs = [(a, int(rate)) for a, rate in zip(audio, audio_sample_rate, strict=True)]
        results = self.judge.answers(self.judge(songs, list(prompt)))
        names = [*(head.name for head in self.judge.reward.heads), "reward_raw", "decoded"]
        return RewardModelOutput(
            rewards=torch.tensor([result["score"] for result in results]),
            extra_info={name: [result[name] for result in results] for name in names},
        )
