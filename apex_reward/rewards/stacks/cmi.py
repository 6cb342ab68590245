"""`CMIRewardModel`: our model behind CMI-RewardBench's model interface.

Named on that benchmark's command line as `apex_reward.rewards.stacks.cmi:CMIRewardModel`,
built with
`checkpoint` and `device`. Interface: https://github.com/Haiwen-Xia/CMI-RewardBench
(`core/model_abc.py`).

Shape key: N = inputs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.songs import TensorSong
from apex_reward.rewards.stacks.batch import BatchJudge

if TYPE_CHECKING:
    from torch import Tensor


class CMIRewardModel:
    """Scores songs for CMI-RewardBench.

    Column 0 (text alignment) is 0 for every song: the model hears music and reads no text, so no
    order of songs by their text is claimed. Column 1 (musicality) is the reward.

    Args:
        checkpoint: hub id, folder or `apex-tiny`.
        device: a torch device, as `cuda:0`; None takes a GPU where there is one.
        mix: how heads become the reward of column 1; any mix, `preference` too.
    """

    def __init__(
        self, checkpoint: str = "amaai-lab/apex", device: str | None = None, mix: str = "overall"
    ) -> None:
        self._reward = Reward(load_reward_model(str(checkpoint), device=device), mix)
        self._judge = BatchJudge(self._reward)

    @property
    def sr(self) -> int:
        """Hz of the waveform tensors that `score_batch` takes."""
        return self._reward.sample_rate

    def score_batch(
        self, inputs: Sequence[Any], batch_size: int, max_dur: float, **kwargs: Any
    ) -> npt.NDArray[np.float32]:
        """(N, 2) scores: text alignment (0), musicality.

        Args:
            inputs: each with `audio`, as an attribute or a key: a path, or a float waveform
                tensor (T,) or (C, T) at `sr`. `text`, `lyrics` and `ref_audio` are not used.
            batch_size: songs per batch.
            max_dur: seconds of each song that count; 0 or less for all of it.
            kwargs: of other models; not used.

        Raises:
            UsageError: an input without audio, a batch size below 1.
            AudioError: a file that cannot be decoded.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; expected at least 1")
        result = np.zeros((len(inputs), 2), dtype=np.float32)
        for start in range(0, len(inputs), batch_size):
            chosen = inputs[start : start + batch_size]
            songs = [TensorSong(self._song(item, max_dur), self.sr) for item in chosen]
            texts = [str(_part(item, "text") or "") for item in chosen]
            batch = self._judge(songs, texts)
            if batch.reasons:
                number, reason = next(iter(batch.reasons.items()))
                raise AudioError(f"input {start + number} {reason}")
            result[start : start + len(songs), 1] = batch.raw
        return result

    def _song(self, item: Any, max_dur: float) -> Tensor:
        """(T,) mono at `sr`, cut to `max_dur` seconds."""
        import torch

        from apex_reward.audio import load_audio
        from apex_reward.audio.resample import resample

        audio = _part(item, "audio")
        if isinstance(audio, (str, Path)):
            decoded = load_audio(audio)
            song = resample(torch.from_numpy(decoded.mono), decoded.sample_rate, self.sr)
        elif isinstance(audio, torch.Tensor) and audio.ndim in (1, 2):
            song = audio.float() if audio.ndim == 1 else audio.float().mean(dim=0)
        else:
            raise UsageError("an input needs `audio`: a path, or a waveform tensor (T,) or (C, T)")
        return song[: round(max_dur * self.sr)] if max_dur > 0 else song


def _part(item: Any, name: str) -> Any:
    """A part of an input, which may be an object or a mapping."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
