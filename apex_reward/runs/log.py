"""The files of a training run: history, songs, summary and curves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apex_reward.audio.load import Waveform, save_wav
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import json_ready, read_jsonl, write_json, write_table
from apex_reward.report.charts import draw_curves
from apex_reward.runs.settings import plain


def before_and_after(steps: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """Rewards of the first tenth of a run's steps against those of the last tenth.

    Args:
        steps: rewards of the songs of each step, in order; None for a song without a score.

    Returns:
        `reward_before` and `reward_after`, the means over the songs of the first and the last tenth
        of the steps (at least one step), and `reward_std_before`, the standard deviation over the
        songs of the first tenth.

    Raises:
        StatisticsError: the first or the last tenth has no scored song.
    """
    tenth = max(1, round(len(steps) / 10))
    first, last = (
        [reward for step in part for reward in step if reward is not None]
        for part in (steps[:tenth], steps[-tenth:])
    )
    return {
        "reward_before": statistics.fmean(first),
        "reward_after": statistics.fmean(last),
        "reward_std_before": statistics.pstdev(first),
    }


class RunLog:
    """The files of one run in one folder.

    `history.jsonl.partial` grows by a row a step and stays if the run is killed. `finish` makes
    `history.jsonl` of it, and writes `summary.json` and `curves.png`.

    Args:
        output: the folder; it is made if needed.
        panels: title of each panel of the picture, and the columns of the history in it.
        formats: of the picture.
        xlabel: the meaning of a step.
        writes: False keeps rows and writes nothing. One of several processes writes.
        resume: keep the rows of an earlier run in this folder.
    """

    def __init__(
        self,
        output: str | Path,
        panels: Mapping[str, Sequence[str]],
        *,
        formats: Sequence[str] = ("png",),
        xlabel: str = "step",
        writes: bool = True,
        resume: bool = False,
    ) -> None:
        self.output, self.panels = Path(output), dict(panels)
        self.formats, self.xlabel, self.writes = formats, xlabel, writes
        self.started = time.monotonic()
        self._history = GrowingTable(self.output / "history.jsonl")
        self.rows: list[dict[str, Any]] = []
        if resume:
            whole = self._history.path
            self.rows = self._history.written() or (read_jsonl(whole) if whole.exists() else [])
        self.keep_until(float("inf"))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step, with the key `step` and without values of None."""
        kept = {name: value for name, value in row.items() if value is not None}
        self.rows.append(kept)
        if self.writes:
            self._history.append([kept])

    def keep_until(self, step: float) -> None:
        """Drop the rows after a step. A run that resumes from a checkpoint writes them again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        if self.writes:
            there = min(len(self._history.written()), len(self.rows))
            self._history.start(keep=there)
            self._history.append(self.rows[there:])

    def song(self, name: str, samples: Any, sample_rate: int) -> None:
        """Write `audio/NAME.wav` of a waveform (T,) or (C, T) or a `Waveform`; None: no song."""
        if samples is None or not self.writes:
            return
        if isinstance(samples, Waveform):
            samples, sample_rate = samples.samples, samples.sample_rate
        folder = self.output / "audio"
        folder.mkdir(parents=True, exist_ok=True)
        array = torch.as_tensor(samples).detach().float().cpu().numpy()
        save_wav(folder / f"{name}.wav", array, sample_rate)

    def finish(self, summary: Mapping[str, Any], *settings: Any) -> dict[str, Any]:
        """Write history, summary and curves; the summary gets `seconds`, and is printed.

        Args:
            summary: JSON-ready values; NaN becomes null. A true `demonstration` puts a note on the
                picture.
            settings: dataclasses that are written under `settings`, as `plain` makes them.

        Returns:
            The summary as written.
        """
        whole = {"seconds": time.monotonic() - self.started, **summary}
        if settings:
            whole["settings"] = plain(*settings)
        whole = json_ready(whole)
        if self.writes:
            write_table(self._history.path, self.rows)
            self._history.partial.unlink(missing_ok=True)
            write_json(self.output / "summary.json", whole)
            note = "reward of a demonstration model" if whole.get("demonstration") else ""
            curves = self.output / "curves"
            draw_curves(self.rows, self.panels, curves, note, self.formats, self.xlabel)
            print({name: value for name, value in whole.items() if name != "settings"})
        return dict(whole)
