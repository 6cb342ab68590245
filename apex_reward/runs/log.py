"""What a training run leaves: a history that grows, songs to hear, a summary, curves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from apex_reward.audio.load import Waveform, save_wav
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import json_ready, read_jsonl
from apex_reward.report.run import write_run
from apex_reward.runs.completions import CompletionLog
from apex_reward.runs.settings import plain


class RunLog:
    """The files of one run in one folder.

    `history.jsonl.partial` grows by a row a step, whatever ends the run; `finish` makes
    `history.jsonl`, `summary.json` and `curves.png` of it.

    Args:
        output: the folder; made where it is not there.
        panels: title of each panel of the picture, and the columns of the history it shows.
        formats: of the picture.
        xlabel: what a step is.
        writes: False keeps rows and writes nothing: of several processes one writes.
        resume: keep the rows of a former run in this folder; False begins anew.
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
        self.rows: list[dict[str, Any]] = self._former() if resume else []
        self.keep_until(float("inf"))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step; it has the key `step`, and None is left out."""
        kept = {name: value for name, value in row.items() if value is not None}
        self.rows.append(kept)
        if self.writes:
            self._history.append([kept])

    def keep_until(self, step: float) -> None:
        """Drop the rows after a step: a run that goes on from a checkpoint writes them again."""
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
        array = samples.detach().float().cpu().numpy() if hasattr(samples, "detach") else samples
        save_wav(folder / f"{name}.wav", np.asarray(array, np.float32), sample_rate)

    def finish(self, summary: Mapping[str, Any], *settings: Any) -> dict[str, Any]:
        """Write history, summary and curves; the summary gets `seconds`, and is printed.

        Args:
            summary: JSON-ready values; NaN becomes null.
            settings: dataclasses that are written under `settings`, as `plain` makes them.

        Returns:
            The summary as written.
        """
        whole = {"seconds": time.monotonic() - self.started, **summary}
        if settings:
            whole["settings"] = plain(*settings)
        whole = json_ready(whole)
        if self.writes:
            write_run(self.output, self.rows, whole, self.panels, self.formats, self.xlabel)
            self._history.partial.unlink(missing_ok=True)
            print({name: value for name, value in whole.items() if name != "settings"})
        return dict(whole)

    def _former(self) -> list[dict[str, Any]]:
        whole = self._history.path
        return self._history.written() or (read_jsonl(whole) if whole.exists() else [])


class HistoryCallback(TrainerCallback):
    """Rows of a trainer's log in a `RunLog`, as they come.

    Args:
        log: where they go.
        column: rows that have it are kept: `reward` of GRPO, `loss` of DPO.
        completions: a log of completions that goes on where the run does.
    """

    def __init__(
        self, log: RunLog, column: str = "reward", completions: CompletionLog | None = None
    ) -> None:
        self.log, self.column, self.completions = log, column, completions

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A run that goes on drops what came after its checkpoint."""
        self.log.keep_until(state.global_step)
        if self.completions is not None:
            self.completions.keep_until(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the row."""
        if logs and self.column in logs:
            self.log.append({"step": state.global_step, **logs})
