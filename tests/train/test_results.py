"""The paper's tables from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apex_reward.train import results as plots
from apex_reward.train.report import METRICS
from apex_reward.train.results import paper_table, table1, table2, write_comparison, write_tables


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


def drawn(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The figures of a grid by name."""
    found = {}

    def keep(figure: Any, path: Path, formats: Any) -> None:
        found[path.name] = figure
        assert formats == ("png", "pdf")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", keep)
        plots.plot_tables(rows, folder, ("png", "pdf"))
        plots.plot_tables(rows, folder, ())  # draws nothing
    return found


def test_a_figure_per_head_and_measure_with_seed_intervals(tmp_path: Path) -> None:
    found = drawn(results((0, 2)), tmp_path)
    assert len(found) == 7 * 4
    axis = found["score_streams_mse"].axes[0]
    assert axis.get_xlabel() == "score_streams: MSE (squared points), 2 seeds"
    assert len(axis.texts) == 2 * 24
    assert axis.texts[0].get_text() == "A equal 2 segment popularity"
    low, high = axis.lines[0].get_xdata()
    # Two seeds, mean 714.98, deviation sqrt(2): t(0.975, 1 degree) x sqrt(2) / sqrt(2) = 12.706.
    assert (low, high) == pytest.approx((714.98 - 12.706, 714.98 + 12.706), abs=1e-3)


def test_one_seed_has_dots_alone(tmp_path: Path) -> None:
    axis = drawn(results((0,)), tmp_path)["score_likes_mae"].axes[0]
    assert len(axis.lines) == 24
    assert all(len(line.get_xdata()) == 1 for line in axis.lines)


def test_an_undefined_measure_is_left_out(tmp_path: Path) -> None:
    rows = results((0, 2))
    rows[0]["mse"] = float("nan")
    assert len(drawn(rows, tmp_path)["score_streams_mse"].axes[0].texts) == 2 * 23
