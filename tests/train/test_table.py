"""The paper's tables from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apex_reward.train.intervals import METRICS
from apex_reward.train.table import paper_table, table1, table2, write_comparison, write_tables


def results(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for line in paper_table(1):
        for seed in seeds:
            for head in ("streams", "likes"):
                measures = {
                    m: float(line[f"{head}_{m}"]) for m in ("mse", "mae", "pearson", "spearman")
                }
                named = {k: line[k] for k in ("loss", "mode", "task")}
                row = {**named, "shared": int(line["shared"]), "seed": seed}
                rows.append(
                    {**row, "head": f"score_{head}", **measures, "mse": measures["mse"] + seed}
                )
    keys = {line["model"]: line for line in paper_table(1)}
    for line in paper_table(2):
        for seed in seeds:
            named = {"loss": keys[line["model"]]["loss"], "mode": "song", "task": "full"}
            row = {**named, "shared": int(keys[line["model"]]["shared"]), "seed": seed}
            measures = {m: float(line[m]) for m in METRICS}
            rows.append({**row, "head": line["head"], **measures})
    return rows


def test_layout_is_the_papers(tmp_path: Path) -> None:
    write_tables(results((0,)), tmp_path)
    for number in (1, 2):
        lines = (tmp_path / f"table{number}.csv").read_text().splitlines()
        printed = paper_table(number)
        assert lines[0] == ",".join(printed[0])
        assert len(lines) == 1 + len(printed)
        for line, theirs in zip(lines[1:], printed, strict=True):
            for ours, value in zip(line.split(","), theirs.values(), strict=True):
                assert ours == value or float(ours) == float(value)


def test_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    rows = results((0, 2))
    first = table1(rows)[0]
    assert (first["model"], first["mode"], first["task"]) == ("A", "segment", "popularity")
    mean, spread = first["streams_mse"]
    assert mean == pytest.approx(713.98 + 1)
    assert spread == pytest.approx(2**0.5)
    write_tables(rows, tmp_path)
    assert (
        "| A | equal | 2 | segment | popularity | 714.98 ± 1.41 |"
        in (tmp_path / "table1.md").read_text()
    )
    assert r"714.98 $\pm$ 1.41" in (tmp_path / "table1.tex").read_text()
    assert "streams_mse_std" in (tmp_path / "table1.csv").read_text().splitlines()[0]


def test_comparison_with_itself_is_zero(tmp_path: Path) -> None:
    write_comparison(results((0,)), tmp_path)
    lines = (tmp_path / "comparison.csv").read_text().splitlines()[1:]
    assert len(lines) == 24 * 8 + 30 * 4
    assert {line.split(",")[-1] for line in lines} == {"+0.000"}


def test_popularity_alone_has_no_second_table(tmp_path: Path) -> None:
    rows = [row for row in results((0,)) if row["task"] == "popularity"]
    assert table2(rows) == []
    write_tables(rows, tmp_path)
    assert not (tmp_path / "table2.md").exists()
