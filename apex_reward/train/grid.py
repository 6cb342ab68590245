"""The ablation: every condition and seed, models of one shape training together as one program."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.files.atomic import writing
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.train.dataset import Data
from apex_reward.train.plots import plot_tables
from apex_reward.train.resume import run_epochs
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.table import write_comparison, write_tables
from apex_reward.train.trainer import (
    build_program,
    familiarity,
    mean_row,
    save_best,
    test_reports,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from apex_reward.train.loop import HistoryRow

ResultRow = dict[str, Any]
WORK = ".groups"
# Told the group, the epoch, how many of its models still train, and their means in the epoch.
OnEpoch = Callable[[str, int, int, "HistoryRow"], None]


def run_grid(
    data: Data,
    conditions: Sequence[Condition],
    settings: TrainSettings,
    output: Path,
    *,
    accelerator: Accelerator,
    resume: bool = False,
    paper_data: bool = False,
    formats: Sequence[str] = (),
    on_epoch: OnEpoch = lambda group, epoch, models, means: None,
) -> list[ResultRow]:
    """Train all conditions and write `results.csv`, the tables, and every model in `models/`.

    With several processes each takes whole groups. A resumed grid goes on from every group's last
    epoch and ends with the same bytes.

    Args:
        conditions: as `apex_reward.train.settings.conditions` gives them.
        formats: of the figures beside the tables, next to PNG.
        paper_data: the data is the paper's: compare with its figures in `comparison.md`.

    Returns:
        The rows of `results.csv` in the order of `conditions`.
    """
    work, main = output / WORK, accelerator.is_main_process
    with writing(work) if main else nullcontext():
        if main and not resume:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(output / "models", ignore_errors=True)
        accelerator.wait_for_everyone()
        names = list(dict.fromkeys(condition.group for condition in conditions))
        for group in names[accelerator.process_index :: accelerator.num_processes]:
            members = [condition for condition in conditions if condition.group == group]
            _run_group(members, data, settings, output, accelerator, resume, on_epoch)
        accelerator.wait_for_everyone()
        found = [row for group in names for row in read_jsonl(work / f"{group_name(group)}.jsonl")]
        order = {_key(vars(condition)): i for i, condition in enumerate(conditions)}
        rows = sorted(found, key=lambda row: order[_key(row)])
        if main:
            write_table(output / "results.csv", rows)
            write_tables(rows, output)
            plot_tables(rows, output, tuple(dict.fromkeys(("png", *formats))))
            if paper_data:
                write_comparison(rows, output)
        accelerator.wait_for_everyone()
    return rows


def group_name(group: tuple[int, str, str]) -> str:
    """A group as a file name.

    >>> group_name((2, "song", "full"))
    '2-song-full'
    """
    return "-".join(map(str, group))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["loss"], row["shared"], row["mode"], row["task"], row["seed"]


def _run_group(
    members: Sequence[Condition],
    data: Data,
    settings: TrainSettings,
    output: Path,
    accelerator: Accelerator,
    resume: bool,
    on_epoch: OnEpoch,
) -> None:
    """Train one group; its rows are in `.groups/<group>.jsonl` once it is done."""
    name = group_name(members[0].group)
    state, done = output / WORK / f"{name}.pt", output / WORK / f"{name}.jsonl"
    program = build_program(members, data, settings, accelerator, together=False)
    for _ in run_epochs(program, state, resume):
        on_epoch(name, program.epoch, len(program.active), mean_row(program))
    for index, condition in enumerate(members):
        folder = output / "models" / f"{condition.loss}-{name}-{condition.seed}"
        save_best(program, [index], data, folder, None, familiarity(program, data, index))
    write_table(done, _result_rows(members, test_reports(program, data)))


def _result_rows(
    members: Sequence[Condition], reports: Sequence[dict[str, Any]]
) -> list[ResultRow]:
    return [
        {
            "loss": condition.loss,
            "shared": condition.shared,
            "mode": condition.mode,
            "task": condition.task,
            "seed": condition.seed,
            "head": head,
            **measures,
        }
        for condition, report in zip(members, reports, strict=True)
        for head, measures in report["metrics"].items()
    ]
