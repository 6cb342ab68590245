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

from apex_reward.errors import UsageError

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
        from apex_reward.scoring import load_scorer

        self._model = load_scorer(str(checkpoint), device=device)
        self._mix = mix

    @property
    def sr(self) -> int:
        """Hz of the waveform tensors that `score_batch` takes."""
        return int(self._model.config.sample_rate)

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
            songs = [self._song(item, max_dur) for item in inputs[start : start + batch_size]]
            result[start : start + len(songs), 1] = self._rewards(songs)
        return result

    def _rewards(self, songs: list[Tensor]) -> npt.NDArray[np.float32]:
        import torch

        padded = torch.nn.utils.rnn.pad_sequence(songs, batch_first=True).to(self._model.device)
        lengths = [len(song) for song in songs]
        with torch.inference_mode():
            rewards = self._model.reward(padded, self.sr, lengths=lengths, mix=self._mix)
        return np.asarray(rewards.float().cpu().numpy())

    def _song(self, item: Any, max_dur: float) -> Tensor:
        """(T,) mono at `sr`, cut to `max_dur` seconds."""
        import torch

        from apex_reward.audio import load_audio
        from apex_reward.audio.resample import resample

        audio = item.get("audio") if isinstance(item, Mapping) else getattr(item, "audio", None)
        if isinstance(audio, (str, Path)):
            decoded = load_audio(audio)
            song = resample(torch.from_numpy(decoded.mono), decoded.sample_rate, self.sr)
        elif isinstance(audio, torch.Tensor) and audio.ndim in (1, 2):
            song = audio.float() if audio.ndim == 1 else audio.float().mean(dim=0)
        else:
            raise UsageError("an input needs `audio`: a path, or a waveform tensor (T,) or (C, T)")
        return song[: round(max_dur * self.sr)] if max_dur > 0 else song
