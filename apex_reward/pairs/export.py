"""Pairs in the forms that trainers read.

Every form writes the folder of `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl`, `summary.json` and
`report.html`; the others add a folder of their own name:

| form | holds |
|---|---|
| trl | a data set in the hub's layout, for TRL's `DPOTrainer` |
| kto | the same for its `KTOTrainer` |
| tangoflux | `train.json` and `test.json`: lists of `chosen`, `reject`, `captions`, `duration` |
| jkstep | the same files with JK-Step's documents of `version`, `metadata`, `pairs` |

`datasets.load_dataset(f"{output}/trl")` reads the first two with their splits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.files.atomic import atomic
from apex_reward.files.tables import json_line, write_json, write_table, write_text
from apex_reward.pairs.audio_facts import song_file
from apex_reward.pairs.build import PairSet, dropped_table, pairs_table
from apex_reward.pairs.card import pairs_card
from apex_reward.pairs.forms import jkstep_document, tangoflux_rows
from apex_reward.pairs.hub import FORMS, write_dataset

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("folder", "trl", "kto", "tangoflux", "jkstep")
ROWS_AT_ONCE = 50_000


def summary(result: PairSet) -> dict[str, Any]:
    """Counts of a run, JSON-ready: what came in, what was dropped why, what came out."""
    candidates, options = result.candidates, result.options
    members = np.union1d(result.chosen, result.rejected)
    margin, agreement = result.margin, result.agreement
    return {
        "strategy": options.strategy_name,
        "axis": options.primary,
        "axes": list(options.involved),
        "seed": options.seed,
        "n_candidates": len(candidates),
        "n_prompts": len(np.unique(candidates.prompt[candidates.has_prompt])),
        "n_pairs": len(margin),
        "n_train": int((~result.test).sum()),
        "n_test": int(result.test.sum()),
        "n_prompts_paired": len(np.unique(candidates.prompt[result.chosen])),
        "n_candidates_paired": len(members),
        "n_candidates_dropped": int((~result.dropped.open).sum()),
        "dropped_candidates": result.dropped.counts(),
        "dropped_pairs": result.removed.counts(),
        "margin": _five_numbers(margin),
        **({} if agreement is None else {"agreement": _five_numbers(agreement)}),
    }


def write_folder(
    result: PairSet,
    output: str | Path,
    form: str = "folder",
    folder: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl`, `summary.json`, and `form`'s files.

    Args:
        result: what `build` returned.
        output: the folder to write.
        form: one of `FORMATS`.
        folder: where relative audio paths are tried next to the working directory.
        made_by: `provenance` of the reward behind the scores, for the card of a data set.
    """
    output = Path(output)
    pairs, counts = pairs_table(result), summary(result)
    write_table(output / "pairs.parquet", pairs)
    _write_jsonl(output / "pairs.jsonl", pairs)
    _write_jsonl(output / "dropped.jsonl", dropped_table(result))
    write_json(output / "summary.json", counts)
    if form in FORMS:
        write_dataset(
            output / form,
            pairs,
            form,
            lambda path: song_file(path, folder),
            lambda configs: pairs_card(result, counts, form, configs, made_by),
        )
    elif form in ("tangoflux", "jkstep"):
        _write_json_splits(result, pairs.to_pylist(), output / form)


def _write_json_splits(result: PairSet, rows: list[dict[str, Any]], folder: Path) -> None:
    seconds = np.fmin(
        result.candidates.duration[result.chosen], result.candidates.duration[result.rejected]
    ).tolist()
    for split in ("train", "test"):
        at = [n for n, row in enumerate(rows) if row["split"] == split]
        if not at and split == "test":
            continue  # its trainer takes an empty file for a broken one
        of_split = [rows[n] for n in at]
        document: Any = (
            jkstep_document(of_split)
            if folder.name == "jkstep"
            else tangoflux_rows(of_split, [seconds[n] for n in at])
        )
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / f"{split}.json", text + "\n")


def _five_numbers(values: Any) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("min", "q25", "median", "q75", "max")
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return dict(zip(names, quantiles, strict=True))


def _write_jsonl(path: Path, table: pa.Table) -> None:
    """A block of rows at a time: a million rows never are a million dicts at once."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            file.writelines(json_line(row) for row in batch.to_pylist())
