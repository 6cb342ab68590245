"""The paper's Table 3 in its layout, each figure beside its honest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apex_reward.arena.results import Table3
from apex_reward.files.tables import write_table, write_text
from apex_reward.report.cells import cell
from apex_reward.report.document import Block, Grid, Heading, Words
from apex_reward.report.markdown import markdown_table

COLUMNS = (
    "auc_overall",
    "auc_instrumental",
    "auc_vocal",
    "f1_overall",
    "f1_instrumental",
    "f1_vocal",
)
FORMS = ("published", "honest")


def table3_rows(result: Table3, form: str) -> list[dict[str, Any]]:
    """Rows `section, model, auc_overall, ..., f1_vocal` of one form, in the paper's order."""
    return [
        {"section": section, "model": model, **{name: cells[name] for name in COLUMNS}}
        for section, models in getattr(result, form).items()
        for model, cells in models.items()
    ]


def write_table3(result: Table3, folder: Path) -> None:
    """Write `table3.csv` (the published protocol), `table3_honest.csv` and `table3.md` (both)."""
    write_table(folder / "table3.csv", table3_rows(result, "published"))
    write_table(folder / "table3_honest.csv", table3_rows(result, "honest"))
    columns, rows = table3_grid(result)
    parts = ["# Table 3", _caption(result), markdown_table(columns, rows), result.rules_line]
    write_text(folder / "table3.md", "\n\n".join([*parts, *result.notes]) + "\n")


def table3_grid(result: Table3) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Columns and rows of one table with `published / honest` in every cell."""
    published, honest = (table3_rows(result, form) for form in FORMS)
    rows = [
        [
            row["section"].replace("_", " "),
            row["model"],
            *(f"{cell(row[name])} / {cell(other[name])}" for name in COLUMNS),
        ]
        for row, other in zip(published, honest, strict=True)
    ]
    heads = (name.replace("auc", "AUC").replace("f1", "F1").replace("_", " ") for name in COLUMNS)
    return ("section", "model", *heads), rows


def table3_blocks(result: Table3) -> list[Block]:
    """Table 3 as a section of the report."""
    return [
        Heading("The paper's protocol (Table 3)", _caption(result)),
        Grid(*table3_grid(result), "Table 3"),
        Words(result.rules_line, "warning"),
        *(Words(note) for note in result.notes),
    ]


def _caption(result: Table3) -> str:
    return (
        f"{result.n} battles, A won {result.a_won}; {result.instrumental} instrumental, "
        f"{result.vocal} vocal. Each cell: the published protocol, then the honest figure "
        f"(folds grouped by {result.grouped_by}, antisymmetric features, the higher score wins)."
    )
