"""What a trained model's card says of its data and its measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_reward.model.card import write_card
from apex_reward.report.markdown import markdown_table
from apex_reward.train.dataset import Data
from apex_reward.train.intervals import METRICS


def write_trained_card(
    folder: Path, data: Data, report: Mapping[str, Any], how: Sequence[tuple[str, Any]] = ()
) -> None:
    """Write the card of a trained model.

    Args:
        folder: of the model.
        data: the splits it was trained, chosen and measured on.
        report: the content of `metrics.json`.
        how: further rows on how it was trained.
    """
    names = {"train": "trained on", "val": "chosen on", "test": "measured on"}
    rows: list[tuple[str, Any]] = [
        (text, f"{len(data[split].audio_ids):,} songs") for split, text in names.items()
    ]
    rows += [(name, report[name]) for name in ("mode", "loss", "task")]
    rows += [("members", report["members"])] if "members" in report else []
    training = markdown_table(("training", "was"), [(n, str(v)) for n, v in (*rows, *how)])
    figures = markdown_table(
        ("head", *METRICS),
        [(head, *(found[name] for name in METRICS)) for head, found in report["metrics"].items()],
    )
    note = (
        f"On the {report['n_songs']:,} songs of its test split, which come from the same source as "
        "those it learnt from; other music may be judged worse. Errors are in points of the head."
    )
    write_card(folder, [f"## Data\n\n{training}", f"## Measured\n\n{note}\n\n{figures}"])
