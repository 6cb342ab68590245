"""Tables and pictures of results: the paper's Table 1 and 2 of a grid, measures of one model.

Table 1 has popularity, all conditions; Table 2 aesthetics.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from apex_reward.files.tables import write_text
from apex_reward.metrics import few_songs
from apex_reward.report.cells import counted
from apex_reward.report.charts import Entry, forest
from apex_reward.report.figures import save_figure
from apex_reward.report.markdown import latex_table, markdown_table
from apex_reward.scores.apex import AESTHETIC_HEADS, HEADS, POPULARITY_HEADS
from apex_reward.train.report import METRICS

Row = dict[str, Any]
Cell = tuple[float, float]  # mean and spread over seeds
# The paper's letters; G and H are the loss it does not have.
MODELS = {
    ("equal", 2): "A", ("weighted", 2): "B", ("uncertainty", 2): "C",
    ("equal", 3): "D", ("weighted", 3): "E", ("uncertainty", 3): "F",
    ("standardized", 2): "G", ("standardized", 3): "H",
}  # fmt: skip
TABLE1_KEYS = ("model", "loss", "shared", "mode", "task")
TABLE2_KEYS = ("model", "head")
# The paper's Table 2 describes song mode; streams and likes are named without "score_" in it.
TABLE2_CONDITION = ("song", "full")
AXIS_NAMES = {
    "mse": "MSE (squared points)",
    "mae": "MAE (points)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def table1(results: Sequence[Row]) -> list[Row]:
    """A row per condition, the four measures of streams and likes as (mean, spread over seeds)."""
    rows = []
    for condition, heads in over_seeds(results).items():
        row: Row = dict(zip(TABLE1_KEYS, condition, strict=True))
        for head in POPULARITY_HEADS:
            name = head.removeprefix("score_")
            row |= {f"{name}_{measure}": cell for measure, cell in heads[head].items()}
        rows.append(row)
    return rows


def table2(results: Sequence[Row]) -> list[Row]:
    """A row per model and aesthetic head (song mode, task full)."""
    return [
        {"model": condition[0], "head": head, **heads[head]}
        for condition, heads in over_seeds(results).items()
        if condition[3:] == TABLE2_CONDITION
        for head in AESTHETIC_HEADS
    ]


def over_seeds(results: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, dict[str, Cell]]]:
    """Mean and sample standard deviation of every measure, by condition and head.

    Conditions are in the paper's order: by model, segment before song. The deviation is 0 for one
    seed; both are NaN where a seed's measure is undefined.
    """
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in results:
        key = row["loss"], int(row["shared"])
        condition = MODELS[key], *key, row["mode"], row["task"]
        found.setdefault(condition, {}).setdefault(row["head"], []).append(row)

    def cell(rows: Sequence[Row], metric: str) -> Cell:
        values = np.array([row[metric] for row in rows], np.float64)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0

    return {
        condition: {
            head: {metric: cell(rows, metric) for metric in METRICS}
            for head, rows in found[condition].items()
        }
        for condition in sorted(found, key=lambda c: (c[0], c[3], c[4] == "full"))
    }


def write_tables(
    results: Sequence[Row], output: Path, select: Iterable[str] = ("val_loss",), songs: int = 0
) -> None:
    """`table1` and `table2` as `.md`, `.csv` and `.tex`; no table 2 without task full.

    Args:
        select: figures by which the epochs were chosen, stated below the Markdown table.
        songs: number of test songs, stated there too.
    """
    seeds = len({row["seed"] for row in results})
    rule = {"val_loss": "val_loss, the paper's rule", "val_error": "val_error"}
    note = f"Epochs chosen by {', '.join(rule[name] for name in sorted(select))}. "
    note += f"Measured on {songs} test songs; 95% intervals over them are in intervals.csv."
    note = "\n\n".join([note, *few_songs({"test": songs})])
    for name, rows, places in (("table1", table1(results), 2), ("table2", table2(results), 3)):
        if rows:
            columns = list(rows[0])
            body = [[_text(row[c], places, seeds) for c in columns] for row in rows]
            write_text(output / f"{name}.md", f"{markdown_table(columns, body)}\n\n{note}\n")
            write_text(output / f"{name}.tex", latex_table(columns, body) + "\n")
            flat = pd.DataFrame([_flat(row, seeds) for row in rows])
            write_text(output / f"{name}.csv", flat.to_csv(index=False))


def _text(value: Any, places: int, seeds: int) -> str:
    if not isinstance(value, tuple):
        return str(value)
    mean, spread = (f"{part:.{places}f}" for part in value)
    return "-" if math.isnan(value[0]) else f"{mean} ± {spread}" if seeds > 1 else mean


def _flat(row: Row, seeds: int) -> Row:
    """Means under the paper's column names; with several seeds their spreads in `_std` columns.

    An undefined figure is an empty cell.
    """
    out: Row = {}
    for name, value in row.items():
        if isinstance(value, tuple):
            mean, spread = ("" if math.isnan(part) else f"{part:.6g}" for part in value)
            out |= {name: mean, f"{name}_std": spread} if seeds > 1 else {name: mean}
        else:
            out[name] = value
    return out


def paper_table(number: int) -> list[dict[str, str]]:
    """The figures of the paper's Table 1 or 2, as printed."""
    file = Path(__file__).parent / "paper" / f"table{number}.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def write_comparison(results: Sequence[Row], output: Path) -> None:
    """`comparison.md` and `.csv`: our mean beside the paper's figure, for what both have."""
    lines = []
    for number, ours, keys in (
        (1, table1(results), TABLE1_KEYS),
        (2, table2(results), TABLE2_KEYS),
    ):
        printed = {tuple(row[k] for k in keys): row for row in paper_table(number)}
        for row in ours:
            condition = tuple(str(row[k]) for k in keys)
            for name, theirs in printed.get(condition, {}).items():
                if name not in keys:
                    mean = row[name][0]
                    figures = f"{mean:.3f}", theirs, f"{mean - float(theirs):+.3f}"
                    lines.append([f"table {number}", " ".join(condition), name, *figures])
    columns = ["table", "condition", "measure", "ours", "paper", "difference"]
    write_text(output / "comparison.md", markdown_table(columns, lines) + "\n")
    write_text(output / "comparison.csv", pd.DataFrame(lines, columns=columns).to_csv(index=False))


def plot_tables(results: Sequence[Row], output: Path, formats: Sequence[str]) -> None:
    """A plot of every measure of every head, `HEAD_MEASURE`, with a row per condition.

    With several seeds each dot, a mean, has its 95% interval (Student's t over the seeds).

    Args:
        results: rows of `results.csv`.
        output: the folder of the plots.
        formats: as `save_figure` takes them; none draws nothing.
    """
    seeds, found = len({row["seed"] for row in results}), over_seeds(results)
    factor = float(student.ppf(0.975, seeds - 1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    for head in HEADS if formats else ():
        for name, axis in AXIS_NAMES.items():
            cells = {c: heads[head][name] for c, heads in found.items() if head in heads}
            rows = {
                " ".join(map(str, condition)): (mean, mean - factor * s, mean + factor * s)
                for condition, (mean, s) in cells.items()
            }
            text = f"{head}: {axis}, {counted(seeds, 'seed')}"
            _draw(rows, text, output / f"{head}_{name}", formats)


def plot_metrics(report: Mapping[str, Any], output: Path, formats: Sequence[str]) -> None:
    """A plot of every measure, with a row per head and its 95% interval over songs.

    Args:
        report: the content of `metrics.json`.
        output: gets `popularity_MEASURE` and, where the model has them, `aesthetics_MEASURE`: their
            errors are on different scales.
        formats: as `save_figure` takes them; none draws nothing.
    """
    groups = {"popularity": POPULARITY_HEADS, "aesthetics": AESTHETIC_HEADS}
    for kind, heads in groups.items() if formats else ():
        own = {head: row for head, row in report["metrics"].items() if head in heads}
        for name, axis in AXIS_NAMES.items() if own else ():
            rows = {h: (row[name], *report["ci95"][h][name]) for h, row in own.items()}
            _draw(rows, axis, output / f"{kind}_{name}", formats)


def _draw(
    rows: Mapping[str, tuple[float, float, float]], axis: str, path: Path, formats: Sequence[str]
) -> None:
    """Known values by name, each with its interval where that is known."""
    entries = [
        Entry(name, value, None if math.isnan(low) else (low, high))
        for name, (value, low, high) in rows.items()
        if not math.isnan(value)
    ]
    save_figure(forest(entries, axis), path, formats)
