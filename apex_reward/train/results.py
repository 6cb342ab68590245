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
from apex_reward.report.figures import SERIES, SOFT, label, new_panels, save_figure, style
from apex_reward.report.markdown import latex_table, markdown_table
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS
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
# Name of a line, and for each head and measure the value with the ends of its interval.
Lines = Sequence[tuple[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]]


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


def plot_tables(
    results: Sequence[dict[str, Any]], output: Path, formats: Sequence[str] = ("png",)
) -> None:
    """A figure beside each of the grid's tables: every measure of every condition.

    With several seeds each dot, a mean, has its 95% interval (Student's t over the seeds).

    Args:
        results: rows of `results.csv`.
        output: gets `table1.png` and, where there is task full in song mode, `table2.png`.
        formats: as `save_figure` takes them.
    """
    seeds = len({row["seed"] for row in results})
    factor = float(student.ppf(0.975, seeds - 1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    note = f"{seeds} seeds, 95% intervals of the mean" if seeds > 1 else "one seed"
    first, second = [], []
    for condition, found in over_seeds(results).items():
        cells = {
            head: {name: (m, m - factor * s, m + factor * s) for name, (m, s) in measures.items()}
            for head, measures in found.items()
        }
        first.append((" ".join(map(str, condition)), cells))
        if condition[3:] == TABLE2_CONDITION:
            second.append((f"model {condition[0]}", cells))
    _draw(first, POPULARITY_HEADS, note, output / "table1", formats)
    if second:
        _draw(second, AESTHETIC_HEADS, note, output / "table2", formats)


def plot_metrics(report: Mapping[str, Any], output: Path, formats: Sequence[str]) -> None:
    """Every measure of every head with its 95% interval over songs.

    Args:
        report: the content of `metrics.json`.
        output: gets `popularity` and, where the model has them, `aesthetics` in each format: their
            errors are on different scales.
        formats: as `save_figure` takes them; none draws nothing.
    """
    note = f"{report['n_songs']} songs, 95% intervals over songs"
    groups = {"popularity": POPULARITY_HEADS, "aesthetics": AESTHETIC_HEADS}
    for name, heads in groups.items() if formats else ():
        lines = [
            (head, {"": {m: (values[m], *report["ci95"][head][m]) for m in METRICS}})
            for head, values in report["metrics"].items()
            if head in heads
        ]
        if lines:
            _draw(lines, ("",), note, output / name, formats)


def _draw(
    lines: Lines, heads: Sequence[str], note: str, path: Path, formats: Sequence[str]
) -> None:
    """A panel per measure, a line of dots with intervals per name, a colour per head."""
    figure, axes = new_panels(1, len(METRICS), 13, 1.4 + 0.34 * len(lines), sharey=True)
    for place, head in enumerate(heads):
        colour, shift = SERIES[place], 0.7 * ((place + 0.5) / len(heads) - 0.5)
        places = [number + shift for number in range(len(lines))]
        for panel, metric in zip(axes, METRICS, strict=True):
            values, low, high = zip(*(measures[head][metric] for _, measures in lines), strict=True)
            panel.hlines(places, low, high, color=colour, linewidth=1.2)
            panel.plot(values, places, "o", color=colour, markersize=4, label=head or None)
            panel.set_xlabel(AXIS_NAMES[metric])
    axes[0].set_yticks(range(len(lines)), [label(name) for name, _ in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    with style():
        if heads != ("",):
            handles = axes[0].get_legend_handles_labels()[0]
            figure.legend(handles, list(heads), loc="outside upper left", ncols=len(heads))
        figure.suptitle(note, fontsize=9, color=SOFT, x=0.99, ha="right")
    save_figure(figure, path, formats)
