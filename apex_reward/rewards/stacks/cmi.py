"""`CMIRewardModel`: our models behind CMI-RewardBench's model interface.

Named on that benchmark's command line as `apex_reward.rewards.stacks.cmi:CMIRewardModel`, built
with `checkpoint` and `device`. Interface: https://github.com/Haiwen-Xia/CMI-RewardBench
(`core/model_abc.py`).

Shape key: N = inputs, C = channels, T = samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.errors import AudioError, UsageError, expect
from apex_reward.prompt import prompt_of
from apex_reward.rewards.judge import Judge
from apex_reward.rewards.stacks.samples import reward_of


class CMIRewardModel:
    """Scores songs for CMI-RewardBench.

    Column 0 (text alignment) is the mean of the heads of those models that read the prompt (clap's
    `adherence`, tunejury's `preference`). It is 0 for every song where no model reads it: no order
    of songs by their text is claimed, and the benchmark counts ties as B. Column 1 (musicality) is
    the reward before guards.

    Args:
        checkpoint: a model as `load_reward_model` takes it, or a reward file (`.yaml`).
        device: a torch device, as `cuda:0`; None takes a GPU where there is one.
    """

    def __init__(self, checkpoint: str = "amaai-lab/apex", device: str | None = None) -> None:
        reward = reward_of(str(checkpoint), device)
        self._judge = Judge(reward, undecodable=None)
        self._text_heads = [
            f"{part.name}.{head.name}" if part.name else head.name
            for part in reward.parts.members
            for head in part.model.heads
            if part.model.reads_text and not getattr(part.model, "reads_lyrics", False)
        ]

    @property
    def sr(self) -> int:
        """Hz of the waveform tensors that `score_batch` takes."""
        return self._judge.reward.sample_rate

    def score_batch(
        self, inputs: Sequence[Any], batch_size: int, max_dur: float, **kwargs: Any
    ) -> npt.NDArray[np.float32]:
        """(N, 2) scores: text alignment, musicality.

        Args:
            inputs: each with `audio`, as an attribute or a key: a path, or a float waveform
                tensor (T,) or (C, T) at `sr`. `text` and `lyrics` go to the models that read them;
                `ref_audio` is not used.
            batch_size: songs per batch.
            max_dur: seconds of each song that count; 0 or less for all of it.
            kwargs: of other models; not used.

        Raises:
            UsageError: an input without audio, a batch size below 1.
            AudioError: an input that has no score.
        """
        expect(batch_size >= 1, "batch_size", batch_size, "at least 1")
        result = np.zeros((len(inputs), 2), dtype=np.float32)
        for start in range(0, len(inputs), batch_size):
            chosen = inputs[start : start + batch_size]
            songs = [(self._song(item, max_dur), self.sr) for item in chosen]
            texts = [prompt_of(_part(item, "text"), _part(item, "lyrics")) for item in chosen]
            found = self._judge(songs, texts)
            for number, reason in found.reasons.items():
                raise AudioError(f"input {start + number} {reason}")
            for number, row in enumerate(found.scored, start):
                aligned = fmean(row[name] for name in self._text_heads) if self._text_heads else 0.0
                result[number] = aligned, row["reward_raw"]
        return result

    def _song(self, item: Any, max_dur: float) -> Tensor:
        """(T,) mono at `sr`, cut to `max_dur` seconds."""
        audio = _part(item, "audio")
        if isinstance(audio, (str, Path)):
            decoded = load_audio(audio)
            song = resample(torch.from_numpy(decoded.mono), decoded.sample_rate, self.sr)
        elif isinstance(audio, Tensor) and audio.ndim in (1, 2):
            song = audio.float() if audio.ndim == 1 else audio.float().mean(dim=0)
        else:
            raise UsageError("an input needs `audio`: a path, or a waveform tensor (T,) or (C, T)")
        return song[: round(max_dur * self.sr)] if max_dur > 0 else song


def _part(item: Any, name: str) -> Any:
    """A part of an input, which may be an object or a mapping."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
