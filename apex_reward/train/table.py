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
DIGITS = {"mse": 2, "mae": 2, "pearson": 2, "spearman": 2}
FINE_DIGITS = dict.fromkeys(METRICS, 3)
TABLE1_KEYS = ("model", "loss", "shared", "mode", "task")
TABLE2_KEYS = ("model", "head")
# The paper's Table 2 describes song mode; streams and likes are named without "score_" in it.
TABLE2_MODE, TABLE2_TASK = "song", "full"


def table1(results: Sequence[Row]) -> list[Row]:
    """A row per condition, the four measures of streams and likes as (mean, spread over seeds)."""
    rows = []
    for model, loss, shared, mode, task in _conditions(results):
        row: Row = dict(zip(TABLE1_KEYS, (model, loss, shared, mode, task), strict=True))
        for head in POPULARITY_HEADS:
            chosen = [r for r in results if _condition(r)[1:] == (loss, shared, mode, task)]
            measures = _over_seeds(r for r in chosen if r["head"] == head)
            row |= {f"{head.removeprefix('score_')}_{k}": cell for k, cell in measures.items()}
        rows.append(row)
    return rows


def table2(results: Sequence[Row]) -> list[Row]:
    """A row per model and aesthetic head (song mode, task full)."""
    chosen = [r for r in results if (r["mode"], r["task"]) == (TABLE2_MODE, TABLE2_TASK)]
    rows = []
    for condition in _conditions(chosen):
        for head in AESTHETIC_HEADS:
            measures = _over_seeds(
                r for r in chosen if _condition(r) == condition and r["head"] == head
            )
            rows.append({"model": condition[0], "head": head, **measures})
    return rows


def _condition(row: Row) -> tuple[str, str, int, str, str]:
    loss, shared = row["loss"], int(row["shared"])
    return MODELS[loss, shared], loss, shared, row["mode"], row["task"]


def _conditions(results: Iterable[Row]) -> list[tuple[str, str, int, str, str]]:
    """Distinct conditions in the paper's order: by model, segment before song."""
    found = {_condition(row) for row in results}
    return sorted(found, key=lambda c: (c[0], c[3], c[4] == "full"))


def _over_seeds(rows: Iterable[Row]) -> dict[str, Cell]:
    """Mean and sample standard deviation of every measure; 0 for one seed, NaN for undefined."""
    found = list(rows)
    cells = {}
    for metric in METRICS:
        values = np.array([row[metric] for row in found], np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        cells[metric] = (float(values.mean()), spread)
    return cells


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
    for name, rows, keys, digits in (
        ("table1", table1(results), TABLE1_KEYS, DIGITS),
        ("table2", table2(results), TABLE2_KEYS, FINE_DIGITS),
    ):
        if not rows:
            continue
        columns = list(rows[0])
        body = [[_text(row[c], c, digits, seeds) for c in columns] for row in rows]
        write_text(output / f"{name}.md", f"{markdown_table(columns, body)}\n\n{note}\n")
        write_text(output / f"{name}.tex", latex_table(columns, body) + "\n")
        write_text(output / f"{name}.csv", _csv(rows, keys, seeds))


def _text(value: Any, column: str, digits: dict[str, int], seeds: int) -> str:
    if not isinstance(value, tuple):
        return str(value)
    places = digits[column.rsplit("_", 1)[-1]]
    mean, spread = (f"{part:.{places}f}" for part in value)
    if math.isnan(value[0]):
        return "-"
    return f"{mean} ± {spread}" if seeds > 1 else mean


def _csv(rows: Sequence[Row], keys: Sequence[str], seeds: int) -> str:
    """Means under the paper's column names; with several seeds their spreads in `_std` columns.

    An undefined figure is an empty cell.
    """
    flat = []
    for row in rows:
        out = {key: row[key] for key in keys}
        for name in row:
            if name not in keys:
                parts = zip((name, f"{name}_std"), row[name], strict=True)
                cells = {n: "" if math.isnan(part) else f"{part:.6g}" for n, part in parts}
                out |= cells if seeds > 1 else {name: cells[name]}
        flat.append(out)
    return _csv_text([list(flat[0]), *(list(row.values()) for row in flat)])


def _csv_text(lines: Iterable[Sequence[Any]]) -> str:
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
            theirs = printed.get(tuple(str(row[k]) for k in keys), {})
            lines += [
                [
                    f"table {number}",
                    " ".join(str(row[k]) for k in keys),
                    name,
                    f"{row[name][0]:.3f}",
                    theirs[name],
                    f"{row[name][0] - float(theirs[name]):+.3f}",
                ]
                for name in row
                if name in theirs and name not in keys
            ]
    columns = ["table", "condition", "measure", "ours", "paper", "difference"]
    write_text(output / "comparison.md", markdown_table(columns, lines) + "\n")
    write_text(output / "comparison.csv", _csv_text([columns, *lines]))
