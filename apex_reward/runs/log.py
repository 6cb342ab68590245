"""The files of a training run: history, completions, songs, summary and curves."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from apex_reward.audio.load import Waveform, save_wav
from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import (
    json_line,
    json_ready,
    read_jsonl,
    write_json,
    write_table,
    write_text,
)
from apex_reward.report.charts import draw_curves
from apex_reward.rewards.groups import everywhere
from apex_reward.rewards.stacks.trl import ApexRewardFunction
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
        UsageError: the first or the last tenth has no scored song.
    """
    tenth = max(1, round(len(steps) / 10))
    first, last = (
        [reward for step in part for reward in step if reward is not None]
        for part in (steps[:tenth], steps[-tenth:])
    )
    if not first or not last:
        raise UsageError("the first or the last tenth of the run has no scored song")
    return {
        "reward_before": statistics.fmean(first),
        "reward_after": statistics.fmean(last),
        "reward_std_before": statistics.pstdev(first),
    }


def write_run(
    output: Path,
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    panels: Mapping[str, Sequence[str]],
    formats: Sequence[str] = ("png",),
    xlabel: str = "step",
) -> None:
    """Write `history.jsonl`, `summary.json` and `curves.png` into a folder.

    Args:
        output: the folder; it is made if needed.
        history: a row per logged step, each with `step`.
        summary: JSON-ready values. A true `demonstration` puts a note on the picture.
        panels: title of each panel of the picture, and the columns of `history` in it.
        formats: of the picture, as `save_figure` reads them.
        xlabel: the meaning of a step, such as `N (candidates per prompt)`.
    """
    write_table(output / "history.jsonl", history)
    write_json(output / "summary.json", summary)
    note = "reward of a demonstration model" if summary.get("demonstration") else ""
    draw_curves(history, panels, output / "curves", note, formats, xlabel)


class RunLog:
    """The files of one run in one folder.

    `history.jsonl.partial` grows by a row a step and stays if the run is killed. `finish` writes
    `history.jsonl`, `summary.json` and `curves.png`.

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
        self.rows: list[dict[str, Any]] = self._former() if resume else []
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


class CompletionLog:
    """A reward function for TRL that writes every completion with its reward and scores.

    A row has `step` (steps completed before it was generated), `prompt`, `reward`, a column per
    head, `reward_raw`, `flags` and `ids`. The main process writes the rows of all processes.

    Args:
        function: the reward function.
        path: of the JSON lines.
        writes: whether this process writes.
        resume: keep the rows of an earlier run; `keep_until` drops those that are written again.
    """

    def __init__(
        self,
        function: ApexRewardFunction,
        path: str | Path,
        *,
        writes: bool = True,
        resume: bool = False,
    ) -> None:
        self.function, self.path, self.writes = function, Path(path), writes
        self.__name__ = function.__name__
        self.rows: list[dict[str, Any]] = []
        if resume and self.path.exists():
            self.rows = read_jsonl(self.path)
        self.keep_until(float("inf"))

    def keep_until(self, step: float) -> None:
        """Drop the rows of a step and after it."""
        self.rows = [row for row in self.rows if row["step"] < step]
        if self.writes:
            write_text(self.path, "".join(map(json_line, self.rows)))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """As `ApexRewardFunction`."""
        logged: dict[str, list[Any]] = {}

        def keep(name: str, values: list[Any]) -> None:
            logged[name.rpartition("/")[2]] = values
            if log_extra is not None:
                log_extra(name, values)

        rewards = self.function(prompts, completions, completion_ids, log_extra=keep, **columns)
        step = 0 if trainer_state is None else trainer_state.global_step
        rows = [
            {
                "step": step,
                "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
                "reward": reward,
                **{name: values[i] for name, values in logged.items()},
                "ids": list(completion_ids[i]),
            }
            for i, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True))
        ]
        gathered, _ = everywhere(rows)
        self.rows += gathered
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(map(json_line, gathered)))
        return rewards

    def by_step(self) -> list[list[dict[str, Any]]]:
        """The rows of each step, in order."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            rows.setdefault(row["step"], []).append(row)
        return [rows[step] for step in sorted(rows)]


def flagged_share(steps: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Share of the decoded songs with a guard that trips."""
    flags = [row["flags"] for rows in steps for row in rows if row["flags"] is not None]
    return sum(map(bool, flags)) / max(1, len(flags))


def undecodable_share(steps: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Share of the completions that do not decode."""
    rows = [row for rows in steps for row in rows]
    return sum(row["flags"] is None for row in rows) / max(1, len(rows))


class HistoryCallback(TrainerCallback):
    """Adds the rows of a trainer's log to a `RunLog`.

    Args:
        log: gets the rows.
        column: rows with this column are kept: `reward` of GRPO, `loss` of DPO.
        completions: a log of completions that resumes with the run.
    """

    def __init__(
        self, log: RunLog, column: str = "reward", completions: CompletionLog | None = None
    ) -> None:
        self.log, self.column, self.completions = log, column, completions

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run drops the rows after its checkpoint."""
        self.log.keep_until(state.global_step)
        if self.completions is not None:
            self.completions.keep_until(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the row."""
        if logs and self.column in logs:
            self.log.append({"step": state.global_step, **logs})
