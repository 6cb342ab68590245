"""The ablation: every condition and seed, trained one after the other, and the tables of all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from apex_reward.files.atomic import writing
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.train.evaluate import finish_checkpoint
from apex_reward.train.loop import HistoryRow, run_epochs
from apex_reward.train.report import METRICS
from apex_reward.train.results import plot_tables, write_comparison, write_tables
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data
from apex_reward.train.trainer import checkpoint_of, run_stamp, sample_loop

ResultRow = dict[str, Any]
WORK = ".runs"
# Called with the run's name and the new row of its history; None when an earlier run finished it.
OnEpoch = Callable[[str, HistoryRow | None], None]


def run_grid(
    data: Data,
    runs: Sequence[TrainSettings],
    output: Path,
    *,
    accelerator: Accelerator,
    resume: bool = False,
    paper_data: bool = False,
    formats: Sequence[str] = (),
    on_epoch: OnEpoch = lambda name, row: None,
) -> list[ResultRow]:
    """Train all runs and write `results.csv`, `intervals.csv`, the tables, and `models/`.

    With several processes each trains whole runs. A resumed grid keeps finished runs, goes on from
    the last state of the others and ends with the same bytes.

    Args:
        runs: as `apex_reward.train.settings.conditions` gives them.
        formats: in which every measure is drawn, in `figures/`.
        paper_data: the data is the paper's: compare with its figures in `comparison.md`.

    Returns:
        The rows of `results.csv` in the order of `runs`.
    """
    work, main = output / WORK, accelerator.is_main_process
    with writing(work) if main else nullcontext():
        if main and not resume:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(output / "models", ignore_errors=True)
        accelerator.wait_for_everyone()
        for run in runs[accelerator.process_index :: accelerator.num_processes]:
            _train_run(run, data, output, accelerator, resume, on_epoch)
        accelerator.wait_for_everyone()
        found = [row for run in runs for row in read_jsonl(work / f"{run_name(run)}.jsonl")]
        rows = [{k: v for k, v in row.items() if k != "ci95"} for row in found]
        if main:
            write_table(output / "results.csv", rows)
            write_table(output / "intervals.csv", _interval_rows(found))
            write_tables(rows, output, {run.select for run in runs}, len(data["test"].audio_ids))
            plot_tables(rows, output / "figures", formats)
            if paper_data:
                write_comparison(rows, output)
        accelerator.wait_for_everyone()
    return rows


def run_name(run: TrainSettings) -> str:
    """A run as a file name.

    >>> run_name(TrainSettings(loss="equal", seed=1))
    'equal-2-song-full-1'
    """
    return "-".join(map(str, run.condition.values()))


def _train_run(
    run: TrainSettings,
    data: Data,
    output: Path,
    accelerator: Accelerator,
    resume: bool,
    on_epoch: OnEpoch,
) -> None:
    """Train one run; its rows are in `.runs/<name>.jsonl` once it is done."""
    name, stamp = run_name(run), run_stamp(data, run)
    state, done = output / WORK / f"{name}.pt", output / WORK / f"{name}.jsonl"
    if done.is_file():
        stamp.check(state.with_name(state.name + ".json"), done)
        on_epoch(name, None)
        return
    loop = sample_loop(data, run, accelerator, together=False)
    for _ in run_epochs([loop], state, stamp, resume):
        on_epoch(name, loop.history[-1])
    report = finish_checkpoint(checkpoint_of([loop], data), data, output / "models" / name)
    rows = [
        {**run.condition, "head": head, **measures, "ci95": report["ci95"][head]}
        for head, measures in report["metrics"].items()
    ]
    write_table(done, rows)
    state.unlink(missing_ok=True)


def _interval_rows(found: Sequence[ResultRow]) -> list[ResultRow]:
    """A row per condition, seed, head and measure with its 95% interval over the test songs."""
    rows = []
    for row in found:
        named = {k: v for k, v in row.items() if k not in ("ci95", *METRICS)}
        for name in METRICS:
            ends = dict(zip(("lower", "upper"), row["ci95"][name], strict=True))
            rows.append({**named, "measure": name, "value": row[name], **ends})
    return rows
