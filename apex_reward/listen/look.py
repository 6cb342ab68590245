"""A song as the Try page shows it: its row, its segments, its guards, its waveform, its gradient.

Shape key: T = samples, N = bins of the drawn waveform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from apex_reward.audio.load import load_audio
from apex_reward.errors import AudioError, UsageError
from apex_reward.metrics import FloatArray
from apex_reward.report.charts import Line, curves
from apex_reward.rewards.gradient import reward_and_gradient
from apex_reward.rewards.guards import Guards
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, segment_rows, song_row

BINS = 300


@dataclass(frozen=True)
class Look:
    """Everything that the Try page shows of one song.

    Attributes:
        row: as `score --reward` writes it.
        heads: rows of head, score, weight in the mix.
        guards: rows of guard, value, whether it tripped.
        segments: as `score --segments` writes them; empty for a reward of whole songs.
        wave: (N, 2) lowest and highest sample of each bin, in [-1, 1].
    """

    row: Row
    heads: list[list[object]]
    guards: list[list[object]]
    segments: list[Row]
    wave: FloatArray


def look(reward: Reward, path: Path, prompt: str = "") -> Look:
    """Score a song and gather the values of the page.

    Args:
        reward: its guards are shown; one without guards shows the default ones, flagging only.
        prompt: for models that read text.

    Raises:
        AudioError: the song cannot be decoded or scored.
        UsageError: a model reads text and there is no prompt.
    """
    shown = reward.guards if reward.guards.guards else Guards()
    settings = replace(reward.engine_settings(), guards=shown)
    (result,) = reward.results([str(path)], _prompts(reward, prompt), settings=settings)
    if result.error is not None:
        raise AudioError(result.error)
    row = song_row(reward, result, rewarded=True)
    try:
        segments = segment_rows(reward, result)
    except UsageError:
        segments = []
    heads: list[list[object]] = [
        [head.name, row[head.name], reward.mix.weights.get(head.name)] for head in reward.heads
    ]
    guards: list[list[object]] = [
        [guard.name, value, guard.trips(value)]
        for guard in shown.guards
        if (value := result.measured.get(guard.name)) is not None
    ]
    wave = [[part.min(), part.max()] for part in _bins(load_audio(path).mono)]
    return Look(row, heads, guards, segments, np.array(wave, dtype=np.float64))


def gradient_strength(reward: Reward, path: Path, prompt: str = "") -> list[float]:
    """(N,) RMS of the reward's waveform gradient in each bin, the strongest bin 1.

    Raises:
        AudioError: the song cannot be decoded or scored.
        UsageError: a model has no gradient, or reads text and there is no prompt.
    """
    song, prompts = load_audio(path), _prompts(reward, prompt)
    wave = torch.from_numpy(song.mono)[None].to(reward.parts.device)
    _, gradient = reward_and_gradient(reward, wave, song.sample_rate, prompts=prompts)
    power = gradient[0].float().square().cpu().numpy()
    strength = np.sqrt([part.mean() for part in _bins(power)])
    return [float(value) for value in strength / (float(strength.max()) or 1.0)]


def segment_curves(reward: Reward, segments: Sequence[Row]) -> list[tuple[str, Figure]]:
    """A picture per range of heads: their scores over the middle of each segment, in seconds.

    Empty for less than two segments.
    """
    ranges: dict[tuple[float, float], list[str]] = {}
    for head in reward.heads if len(segments) > 1 else ():
        ranges.setdefault((head.low, head.high), []).append(head.name)
    middle = [(row["start"] + row["end"]) / 2 for row in segments]
    pictures = []
    for (low, high), names in ranges.items():
        lines = {name: Line(middle, [row[name] for row in segments]) for name in names}
        scale = f"score ({low:g} to {high:g})"
        pictures.append((", ".join(names), curves(lines, "middle of the segment (s)", scale)))
    return pictures


def _prompts(reward: Reward, prompt: str) -> list[Any] | None:
    return [prompt] if prompt and reward.model.reads_text else None


def _bins(values: Any) -> list[Any]:
    return np.array_split(values, min(BINS, len(values)))
