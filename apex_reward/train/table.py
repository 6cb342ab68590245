"""The paper's Table 1 (popularity, all conditions) and Table 2 (aesthetics) from grid results."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from apex_reward.files.tables import write_text
from apex_reward.report.markdown import latex_table, markdown_table
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS
from apex_reward.train.report import METRICS, few_songs

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
            flat = [_flat(row, seeds) for row in rows]
            write_text(
                output / f"{name}.csv", _csv_text([list(flat[0]), *(row.values() for row in flat)])
            )


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


def _csv_text(lines: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def paper_table(number: int) -> list[dict[str, str]]:
    """The figures of the paper's Table 1 or 2, as printed."""
    file = resources.files("apex_reward.train") / "paper" / f"table{number}.csv"
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


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
    write_text(output / "comparison.csv", _csv_text([columns, *lines]))
