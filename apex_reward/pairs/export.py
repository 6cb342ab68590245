"""Pairs in the forms that trainers read.

Every form writes the folder of `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl`, `summary.json` and
`report.html`; the others add, in a folder of their own name, `train` and `test` files:

| form | ending | holds |
|---|---|---|
| trl | `.parquet` | TRL's preference form, for `DPOTrainer` |
| kto | `.parquet` | TRL's unpaired form, for `KTOTrainer` |
| tangoflux | `.json` | a list of `chosen`, `reject`, `captions`, `duration` |

`datasets.load_dataset(f"{output}/trl")` reads the first two with their splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.files.tables import atomic_path, json_line, write_json, write_table, write_text
from apex_reward.pairs.build import PairSet

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

FORMATS = ("folder", "trl", "kto", "tangoflux")
ROWS_AT_ONCE = 50_000
Row = Mapping[str, Any]


def pairs_table(result: PairSet) -> pa.Table:
    """One row per pair, with the columns of `pairs.jsonl`."""
    import pyarrow as pa

    table, w, low = result.candidates.table, result.winner, result.loser
    audio = table["audio"]
    columns: dict[str, Any] = {
        "prompt": table["prompt"].take(w),
        "prompt_id": table["prompt_id"].take(w),
        "chosen": audio.take(w),
        "rejected": audio.take(low),
    }
    for axis in result.options.involved:
        values = result.candidates.axes[axis]
        columns[f"chosen_{axis}"], columns[f"rejected_{axis}"] = values[w], values[low]
    columns["margin"] = result.margin
    columns["strategy"] = pa.array([result.options.strategy_name] * len(w), pa.string())
    columns["split"] = pa.array(np.where(result.test, "test", "train").tolist(), pa.string())
    if "tokens" in table.column_names:
        columns["chosen_tokens"] = table["tokens"].take(w)
        columns["rejected_tokens"] = table["tokens"].take(low)
    return pa.table(columns)


def dropped_table(result: PairSet) -> pa.Table:
    """One row per candidate in no pair, then one per proposed pair that a filter removed.

    A pair's `audio` is `CHOSEN > REJECTED`.
    """
    import pyarrow as pa

    table = result.candidates.table
    rows = np.flatnonzero(~result.dropped.open)
    candidates = pa.table(
        {
            "kind": pa.array(["candidate"] * len(rows), pa.string()),
            "prompt_id": table["prompt_id"].take(rows),
            "audio": table["audio"].take(rows),
            "reason": pa.array(_texts(result.dropped.codes[rows], result.dropped), pa.string()),
        }
    )
    gone = np.flatnonzero(~result.removed.open)
    winner, loser = (side[gone] for side in result.proposed)
    sides = (table["audio"].take(side).to_pylist() for side in (winner, loser))
    pairs = pa.table(
        {
            "kind": pa.array(["pair"] * len(gone), pa.string()),
            "prompt_id": table["prompt_id"].take(winner),
            "audio": pa.array([f"{a} > {b}" for a, b in zip(*sides, strict=True)], pa.string()),
            "reason": pa.array(_texts(result.removed.codes[gone], result.removed), pa.string()),
        }
    )
    return pa.concat_tables([candidates, pairs])


def summary(result: PairSet) -> dict[str, Any]:
    """Counts of a run, JSON-ready: what came in, what was dropped why, what came out."""
    candidates, options = result.candidates, result.options
    members = np.union1d(result.winner, result.loser)
    margin = result.margin
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
        "n_prompts_paired": len(np.unique(candidates.prompt[result.winner])),
        "n_candidates_paired": len(members),
        "n_candidates_dropped": int((~result.dropped.open).sum()),
        "dropped_candidates": result.dropped.counts(),
        "dropped_pairs": result.removed.counts(),
        "margin": {name: float(value) for name, value in _five_numbers(margin).items()},
    }


def write_folder(result: PairSet, output: str | Path, form: str = "folder") -> None:
    """Write `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl`, `summary.json`, and `form`'s files."""
    output = Path(output)
    pairs = pairs_table(result)
    write_table(output / "pairs.parquet", pairs)
    _write_jsonl(output / "pairs.jsonl", pairs)
    _write_jsonl(output / "dropped.jsonl", dropped_table(result))
    write_json(output / "summary.json", summary(result))
    if form == "folder":
        return
    rows = pairs.to_pylist()
    seconds = np.fmin(
        result.candidates.duration[result.winner], result.candidates.duration[result.loser]
    ).tolist()
    for split in ("train", "test"):
        at = [n for n, row in enumerate(rows) if row["split"] == split]
        if not at and split == "test":
            continue  # readers of these forms take an empty file for a broken one
        of_split = [rows[n] for n in at]
        if form == "tangoflux":
            entries = tangoflux_rows(of_split, [seconds[n] for n in at])
            text = json.dumps(entries, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(output / form / f"{split}.json", text + "\n")
        else:
            dataset = to_trl(of_split) if form == "trl" else to_kto(of_split)
            write_table(output / form / f"{split}.parquet", dataset.data.table)


def to_trl(pairs: Iterable[Row]) -> datasets.Dataset:
    """TRL's preference form: `prompt`, `chosen`, `rejected` as text, what `DPOTrainer` takes.

    With tokens, the texts are the tokens: as given where they are text; ids are written in
    decimal with spaces between, and kept as `chosen_ids` and `rejected_ids` beside. Without
    tokens, the texts are the audio paths. TRL puts prompt and completion together as they are, so
    a completion starts with a space where two words would run into one. Pass one split only
    (`pair["split"]`).
    """
    return _dataset(
        [
            {
                "prompt": pair["prompt"],
                "chosen": _completion(pair, "chosen"),
                "rejected": _completion(pair, "rejected"),
                **_ids(pair, "chosen"),
                **_ids(pair, "rejected"),
            }
            for pair in pairs
        ],
        ("prompt", "chosen", "rejected"),
    )


def to_kto(pairs: Iterable[Row]) -> datasets.Dataset:
    """TRL's unpaired form: `prompt`, `completion`, `label`, what `KTOTrainer` takes.

    Each song is there once per prompt and label, however many pairs it is in: chosen songs with
    label True, rejected ones with label False.
    """
    rows: dict[tuple[Any, str, bool], dict[str, Any]] = {}
    for pair in pairs:
        for side, label in (("chosen", True), ("rejected", False)):
            row = {"prompt": pair["prompt"], "completion": _completion(pair, side), "label": label}
            rows.setdefault((pair["prompt_id"], pair[side], label), row)
    return _dataset(list(rows.values()), ("prompt", "completion", "label"))


def tangoflux_rows(
    pairs: Iterable[Row], seconds: Sequence[float | None] | None = None
) -> list[dict[str, Any]]:
    """The rows of TangoFlux-style trainers: `chosen`, `reject`, `captions`, `duration`.

    Args:
        pairs: rows of `pairs.jsonl`, of one split.
        seconds: the duration of each pair (the shorter song's, so that neither needs padding);
            None or NaN is written as null.
    """
    rows = list(pairs)
    lengths = [None] * len(rows) if seconds is None else seconds
    return [
        {
            "chosen": pair["chosen"],
            "reject": pair["rejected"],
            "captions": pair["prompt"],
            "duration": None if length is None or length != length else length,
        }
        for pair, length in zip(rows, lengths, strict=True)
    ]


def _completion(pair: Row, side: str) -> str:
    """The text of a song; a space keeps a tokenizer from joining it with the prompt's last word."""
    tokens = pair.get(f"{side}_tokens")
    if tokens is None:
        text = str(pair[side])
    else:
        text = tokens if isinstance(tokens, str) else " ".join(map(str, tokens))
    meets = pair["prompt"][-1:].isalnum() and text[:1].isalnum()
    return f" {text}" if meets else text


def _ids(pair: Row, side: str) -> dict[str, list[int]]:
    tokens = pair.get(f"{side}_tokens")
    return {} if tokens is None or isinstance(tokens, str) else {f"{side}_ids": tokens}


def _dataset(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> datasets.Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows) if rows else Dataset.from_dict({name: [] for name in columns})


def _texts(codes: Any, ledger: Any) -> list[str]:
    return [ledger.text(code) for code in codes.tolist()]


def _five_numbers(values: Any) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("min", "q25", "median", "q75", "max")
    return dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), strict=True))


def _write_jsonl(path: Path, table: pa.Table) -> None:
    """A block of rows at a time: a million rows never are a million dicts at once."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            file.writelines(json_line(row) for row in batch.to_pylist())
