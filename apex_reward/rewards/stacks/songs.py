"""What a stack hands over as a song, whatever its form, and prompts as text.

Shape key: C = channels, T = samples.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex_reward.audio.load import Waveform, load_audio
from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.songs import TensorSong


def song_of(item: Any, sample_rate: int) -> TensorSong | None:
    """A song in memory of what a decoder or a dataset column holds; None where there is none.

    Args:
        item: a float waveform (T,) or (C, T) in [-1, 1] (tensor or array) at `sample_rate`, a pair
            (waveform, Hz), a `Waveform`, the path of a file, or the mapping of a `datasets` Audio
            column (`array` and `sampling_rate`, or `bytes`, or `path`).

    Raises:
        UsageError: something else: integers, another shape.
    """
    try:
        waveform, rate = _waveform(item, sample_rate)
    except AudioError:
        return None
    if waveform is None:
        return None
    if waveform.ndim not in (1, 2) or not waveform.is_floating_point():
        raise UsageError(
            f"a completion decoded to {waveform.dtype} of shape {tuple(waveform.shape)}; "
            "expected a float waveform (T,) or (C, T) in [-1, 1], or None"
        )
    song = TensorSong(waveform, rate)
    return song if song.error is None else None


def prompt_texts(prompts: Sequence[Any]) -> list[str]:
    """Prompts as plain text: of message lists what the user said last."""
    return [_text(prompt) for prompt in prompts]


def _waveform(item: Any, rate: int) -> tuple[Tensor | None, int]:
    if item is None:
        return None, rate
    if isinstance(item, (str, Path)):
        item = load_audio(item)
    if isinstance(item, Mapping):
        return _column(item, rate)
    if isinstance(item, Waveform):
        return torch.from_numpy(np.ascontiguousarray(item.samples)), item.sample_rate
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int):
        item, rate = item
    if isinstance(item, Tensor):
        return item, rate
    return torch.as_tensor(np.asarray(item)), rate


def _column(item: Mapping[str, Any], rate: int) -> tuple[Tensor | None, int]:
    """The mapping of an Audio column."""
    if item.get("array") is not None:
        array = np.asarray(item["array"], np.float32)
        return torch.from_numpy(array), int(item.get("sampling_rate") or rate)
    if item.get("bytes"):
        import soundfile

        try:
            samples, found = soundfile.read(io.BytesIO(item["bytes"]), dtype="float32",
                                            always_2d=True)  # fmt: skip
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"is not audio that can be decoded ({error})") from error
        return torch.from_numpy(np.ascontiguousarray(samples.T)), int(found)
    if item.get("path"):
        return _waveform(str(item["path"]), rate)
    return None, rate


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence):
        said = [m for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
        messages: list[Any] = said or list(prompt) or [""]
        content = messages[-1]
        content = content.get("content", "") if isinstance(content, Mapping) else content
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):
            parts = [p.get("text", "") for p in content if isinstance(p, Mapping)]
            return "\n".join(part for part in parts if part)
    return json.dumps(prompt, default=str)
