"""Scores by the values of a column: means of groups with intervals, and a test that they are equal.

The file has a row per column, group and figure: `column`, `group`, `figure`, `songs`, `mean`,
`lower` and `upper` (95% bootstrap interval, over prompts where songs have them), and `p_value`. The
test of equal groups is Kruskal and Wallis' rank test of the prompts' means, adjusted by Holm's
method over the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from apex_reward.errors import UsageError
from apex_reward.files.tables import as_text, read_rows, write_table
from apex_reward.metrics import FloatArray, bootstrap, holm, stretched_interval
from apex_reward.prompt import same_text
from apex_reward.scoring.job import path_beside
from apex_reward.scoring.lists import Input

Row = dict[str, Any]
FEWEST = 5
"""Groups with fewer prompts (or songs without one) have figures and take no part in the test."""


def check_columns(columns: Sequence[str], sources: Sequence[Input]) -> None:
    """Raises UsageError where no list has one of the columns."""
    there = dict.fromkeys(name for source in sources for name in source.columns)
    if missing := [name for name in columns if name not in there]:
        raise UsageError(
            f"--by {', '.join(missing)}: no such column in the lists of songs; they have "
            f"{', '.join(there) or 'none'}"
        )


def write_groups(output: Path, columns: Mapping[str, str], figures: Sequence[str]) -> list[str]:
    """Write the groups of a finished result file beside it; the largest gaps in words.

    Args:
        output: what `score_to_file` wrote. Rows with an error are left out.
        columns: columns of the inputs -> the name that each has in the file.
        figures: heads and rewards.

    Returns:
        A sentence per column and figure whose groups differ (adjusted p-value below 0.05).
    """
    rows = [row for row in read_rows(output) if not row.get("error")]
    tables = {
        (column, figure): _groups(rows, kept, figure)
        for column, kept in columns.items()
        for figure in figures
    }
    p_values = holm([_p_value(groups) for groups in tables.values()])
    found: list[Row] = []
    words = []
    for ((column, figure), groups), p_value in zip(tables.items(), p_values.tolist(), strict=True):
        means = []
        for group, (values, prompts) in groups.items():
            mean, units = float(np.mean(values)), len(set(prompts))
            means += [(mean, group)] if units >= FEWEST else []
            drawn = bootstrap(partial(_means, values), len(values), clusters=prompts)
            low, high = stretched_interval(drawn, mean, units)
            numbers = {"mean": mean, "lower": low, "upper": high, "p_value": p_value}
            row = {"column": column, "group": group, "figure": figure, "songs": len(values)}
            found.append(row | {n: None if np.isnan(v) else v for n, v in numbers.items()})
        if p_value < 0.05:
            (low, low_group), (high, high_group) = min(means), max(means)
            words.append(
                f"{figure} differs by {column}: {high:.3g} for {high_group}, {low:.3g} for "
                f"{low_group}"
            )
    write_table(path_beside(output, "groups"), found)
    return words


def _groups(rows: Sequence[Mapping[str, Any]], column: str, figure: str) -> dict[str, Any]:
    """Values and prompts of a figure by the texts of a column; cells without either left out."""
    cells = [
        (
            text,
            float(row[figure]),
            same_text(row.get("prompt") or row.get("prompt_id")) or row["path"],
        )
        for row in rows
        if None not in (row.get(column), row.get(figure)) and (text := as_text(row[column]))
    ]
    found = {}
    for text, group in groupby(sorted(cells), key=lambda cell: cell[0]):
        _, values, prompts = zip(*group, strict=True)
        found[text] = (np.array(values), prompts)
    return found


def _means(values: FloatArray, counts: FloatArray) -> FloatArray:
    return np.asarray(counts @ values / counts.sum(axis=1))


def _p_value(groups: Mapping[str, Any]) -> float:
    means = [_prompt_means(values, prompts) for values, prompts in groups.values()]
    large = [one for one in means if len(one) >= FEWEST]
    if len(large) < 2:
        return math.nan
    return 1.0 if np.ptp(np.concatenate(large)) == 0 else float(stats.kruskal(*large).pvalue)


def _prompt_means(values: FloatArray, prompts: Sequence[str]) -> FloatArray:
    _, codes = np.unique(prompts, return_inverse=True)
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))
