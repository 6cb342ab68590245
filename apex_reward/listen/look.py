"""A song as the Try page shows it: its row, its segments, its guards, its waveform, its gradient.

Shape key: T = samples, N = bins of the drawn waveform.
"""

from __future__ import annotations

import math
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
from apex_reward.rewards.engine import SongResult
from apex_reward.rewards.gradient import reward_and_gradient
from apex_reward.rewards.guards import Guards
from apex_reward.rewards.reward import Reward
from apex_reward.rewards.rows import Row, judged, segment_rows, song_row

BINS = 300


@dataclass(frozen=True)
class Look:
    """Everything that the Try page shows of one song.

    Attributes:
        row: as `score --reward` writes it.
        columns: of `heads`.
        heads: rows of head, score, spread over the members (with an ensemble), range, weight in
            the mix.
        guards: rows of guard, value, whether it tripped, limits with their unit.
        segments: as `score --segments` writes them; empty for a reward of whole songs.
        wave: (N, 2) lowest and highest sample of each bin, in [-1, 1].
    """

    row: Row
    columns: list[str]
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
    result = _result(reward, path, prompt)
    row = song_row(reward, result, rewarded=True)
    measured = judged(reward, result, rewarded=False)[2]
    try:
        segments = segment_rows(reward, result)
    except UsageError:
        segments = []
    columns, heads = _heads(reward, row)
    return Look(row, columns, heads, _guards(reward, measured), segments, _wave(path))


def scores_of(reward: Reward, path: Path, prompt: str = "") -> Row:
    """The song's row alone; raises as `look`."""
    return song_row(reward, _result(reward, path, prompt), rewarded=True)


def gradient_strength(reward: Reward, path: Path, prompt: str = "") -> list[float]:
    """(N,) RMS of the reward's waveform gradient in each bin, the strongest bin 1.

    Raises:
        AudioError: the song cannot be decoded or scored.
        UsageError: a model has no gradient, or reads text and there is no prompt.
    """
    song = load_audio(path)
    wave = torch.from_numpy(song.mono)[None].to(reward.parts.device)
    _, gradient = reward_and_gradient(
        reward, wave, song.sample_rate, prompts=_prompts(reward, prompt)
    )
    power = gradient[0].float().square().cpu().numpy()
    strength = np.sqrt([part.mean() for part in _bins(power)])
    highest = float(strength.max())
    return [float(value) for value in strength / (highest or 1.0)]


def segment_curves(reward: Reward, segments: Sequence[Row]) -> list[tuple[str, Figure]]:
    """A picture per range of heads: their scores over the middle of each segment, in seconds.

    Empty for less than two segments.
    """
    ranges = dict.fromkeys((head.low, head.high) for head in reward.heads)
    middle = [(row["start"] + row["end"]) / 2 for row in segments]
    pictures = []
    for low, high in ranges if len(segments) > 1 else ():
        names = [head.name for head in reward.heads if (head.low, head.high) == (low, high)]
        lines = {name: Line(middle, [row[name] for row in segments]) for name in names}
        scale = f"score ({range_words(low, high)})"
        pictures.append((", ".join(names), curves(lines, "middle of the segment (s)", scale)))
    return pictures


def range_words(low: float, high: float) -> str:
    """A range in words; an infinite end is none."""
    if math.isinf(low) and math.isinf(high):
        return "any number"
    if math.isinf(low):
        return f"at most {high:g}"
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _prompts(reward: Reward, prompt: str) -> list[Any] | None:
    return [prompt] if prompt and reward.model.reads_text else None


def _result(reward: Reward, path: Path, prompt: str) -> SongResult:
    shown = reward.guards if reward.guards.guards else Guards()
    settings = replace(reward.engine_settings(pieces=True), guards=shown)
    (result,) = reward.results([str(path)], _prompts(reward, prompt), settings=settings)
    if result.error is not None:
        raise AudioError(result.error)
    return result


def _heads(reward: Reward, row: Row) -> tuple[list[str], list[list[object]]]:
    spread = ["spread"] if reward.members > 1 else []
    rows = [
        [
            head.name,
            row[head.name],
            *(row.get(f"{head.name}_std") for _ in spread),
            range_words(head.low, head.high),
            reward.mix.weights.get(head.name),
        ]
        for head in reward.heads
    ]
    return ["head", "score", *spread, "range", "weight"], rows


def _guards(reward: Reward, measured: dict[str, float]) -> list[list[object]]:
    shown = reward.guards if reward.guards.guards else Guards()
    return [
        [
            guard.name,
            measured[guard.name],
            guard.trips(measured[guard.name]),
            f"{range_words(guard.low, guard.high)} ({guard.unit})",
        ]
        for guard in shown.guards
        if guard.name in measured
    ]


def _wave(path: Path) -> FloatArray:
    parts = _bins(load_audio(path).mono)
    return np.array([[part.min(), part.max()] for part in parts], dtype=np.float64)


def _bins(values: Any) -> list[Any]:
    return np.array_split(values, min(BINS, len(values)))
