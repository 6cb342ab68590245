"""The output folder, and pairs as a data set in the hub's layout with a card.

Every form writes `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl` and `summary.json`; the others
add a folder of their own name:

| form | holds |
|---|---|
| trl | a data set in the hub's layout, for TRL's `DPOTrainer` |
| kto | the same for its `KTOTrainer` |
| tangoflux | `train.json` and `test.json`: lists of `chosen`, `reject`, `captions`, `duration` |
| jkstep | the same files with JK-Step's documents of `version`, `metadata`, `pairs` |

`datasets.load_dataset(f"{output}/trl")` reads the first two with their splits. The config
`default` holds what the trainer takes: texts of tokens, or, where candidates have none, the songs.
Beside tokens a config `audio` holds the songs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import json_line, table_of, write_json, write_table, write_text
from apex_reward.model.licences import stated
from apex_reward.pairs.build import PairSet, dropped_table, pair_rows, pairs_table
from apex_reward.pairs.constraints import song_file
from apex_reward.pairs.forms import (
    SIDES,
    has_tokens,
    jkstep_document,
    tangoflux_rows,
    to_kto,
    to_trl,
)
from apex_reward.pairs.options import PairOptions
from apex_reward.report.markdown import DEMONSTRATION, card, markdown_table, size_category
from apex_reward.version import package_version

FORMATS = ("folder", "trl", "kto", "tangoflux", "jkstep")
FORMS = {"trl": to_trl, "kto": to_kto}
TRAINERS = {"trl": "DPOTrainer", "kto": "KTOTrainer"}
PROMPT = ("prompt", "the text or the chat messages that the songs were made from")
COLUMNS = {
    "trl": (
        PROMPT,
        ("prompt_id", "which candidates competed"),
        ("chosen, rejected", "the preferred song and the other one"),
        ("chosen_AXIS, rejected_AXIS", "their values on each axis; higher is better"),
        ("margin", "lead of the chosen on the primary axis"),
        ("strategy, split", "how the pair was chosen; which part it is in"),
    ),
    "kto": (
        PROMPT,
        ("completion", "a song, or the text of its tokens"),
        ("label", "True for chosen songs, False for rejected ones"),
    ),
}
SHARD_BYTES = 500_000_000
ROWS_AT_ONCE = 32
"""Rows of a row group: the hub's viewer reads whole ones."""
Find = Callable[[str], Path | None]


def summary(result: PairSet) -> dict[str, Any]:
    """Counts of a run, JSON-ready: what came in, what was dropped why, what came out."""
    candidates, options = result.candidates, result.options
    prompts = candidates.prompt[candidates.table["prompt_id"].is_valid().to_numpy()]
    margin, agreement = result.margin, result.agreement
    return {
        "strategy": options.strategy_name,
        "axis": options.primary,
        "axes": list(options.involved),
        "seed": options.seed,
        "n_candidates": len(candidates),
        "n_prompts": len(np.unique(prompts)),
        "n_pairs": len(margin),
        "n_train": int((~result.test).sum()),
        "n_test": int(result.test.sum()),
        "n_prompts_paired": len(np.unique(candidates.prompt[result.chosen])),
        "n_candidates_paired": len(np.union1d(result.chosen, result.rejected)),
        "n_candidates_chosen_and_rejected": len(np.intersect1d(result.chosen, result.rejected)),
        "n_candidates_dropped": int((~result.dropped.open).sum()),
        "dropped_candidates": result.dropped.counts(),
        "dropped_pairs": result.removed.counts(),
        "margin": _five_numbers(margin),
        **({} if agreement is None else {"agreement": _five_numbers(agreement)}),
        "rulers": {name: {"share": share, "ci95": [low, high], "n": n}
                   for name, share, low, high, n in result.rulers},
        "warnings": [text for text in (*result.warnings, result.split_note) if text],
    }  # fmt: skip


def _five_numbers(values: Any) -> dict[str, float]:
    names = ("min", "q25", "median", "q75", "max") if len(values) else ()
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if names else ()
    return dict(zip(names, quantiles, strict=True))


def write_folder(
    result: PairSet,
    output: str | Path,
    form: str = "folder",
    folder: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `pairs.parquet`, `pairs.jsonl`, `dropped.jsonl`, `summary.json`, and `form`'s files.

    Args:
        result: what `build` returned.
        output: the folder to write.
        form: one of `FORMATS`.
        folder: where relative audio paths are tried next to the working directory.
        made_by: `provenance` of the reward behind the scores, for the card of a data set.

    Returns:
        What `summary.json` holds.
    """
    output = Path(output)
    pairs, counts = pairs_table(result), summary(result)
    write_table(output / "pairs.parquet", pairs)
    _write_lines(output / "pairs.jsonl", pair_rows(result))
    _write_lines(output / "dropped.jsonl", dropped_table(result).to_pylist())
    write_json(output / "summary.json", counts)
    if form in FORMS:
        write_dataset(
            output / form,
            pairs,
            form,
            lambda path: song_file(path, folder),
            lambda configs: pairs_card(result.options, counts, form, configs, made_by),
            list(pair_rows(result)),
        )
    elif form != "folder":
        seconds = np.fmin(
            *(result.candidates.numbers["duration"][at] for at in (result.chosen, result.rejected))
        )
        rows = [
            dict(row, seconds=s) for row, s in zip(pair_rows(result), seconds.tolist(), strict=True)
        ]
        for split in ("train", "test"):
            own = [row for row in rows if row["split"] == split]
            if own or split == "train":  # a trainer takes an empty file for a broken one
                document = (jkstep_document(own) if form == "jkstep"
                            else tangoflux_rows(own, [row["seconds"] for row in own]))  # fmt: skip
                text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
                write_text(output / form / f"{split}.json", text + "\n")
    return counts


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(map(json_line, rows))


def write_dataset(
    folder: Path, pairs: pa.Table, form: str, find: Find,
    describe: Callable[[dict[str, str]], str], rows: Sequence[Mapping[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Write pairs as a data set folder, whole: `README.md`, `data/` and, beside tokens, `audio/`.

    Args:
        folder: to write; its content is replaced.
        pairs: the columns of `pairs.jsonl`.
        form: `trl` or `kto`.
        find: the file of a song by its path; None where there is none. Its bytes go into the
            data set, under the file's name.
        describe: the card's text for the digest of each config's files by the config's name.
        rows: the rows of `pairs.jsonl`; None: those of `pairs`.
    """
    rows = pairs.to_pylist() if rows is None else rows
    text, there = has_tokens(rows), any(find(p) for s in SIDES for p in pairs[s].to_pylist())
    homes = {"default": "data", "audio": "audio"} if text and there else {"default": "data"}
    with atomic(folder) as work:
        for split in ("train", "test"):
            own = [row for row in rows if row["split"] == split]
            if not own and split == "test":
                continue
            if text:
                made = FORMS[form](own).data.table
                write_table(work / "data" / f"{split}-00000-of-00001.parquet", made)
            if not text or there:
                part = pairs.filter(pc.equal(pairs["split"], split))
                songs = part if form == "trl" else _kto_songs(own)
                _write_songs(work / ("audio" if text else "data"), split, songs, find)
        digests = {config: _digest(work / home) for config, home in homes.items()}
        write_text(work / "README.md", describe(digests))


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _kto_songs(pairs: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A row per song, prompt and label, with the path of the song."""
    bare = [{n: row[n] for n in ("prompt", "prompt_id", *SIDES)} for row in pairs]
    plain = to_kto(bare).data.table.to_pylist()
    if not plain:
        kinds = (pa.string(), pa.string(), pa.bool_())
        return pa.schema(zip(("prompt", "completion", "label"), kinds, strict=True)).empty_table()
    return table_of([{**row, "completion": row["completion"]["path"]} for row in plain])


def _write_songs(folder: Path, split: str, table: pa.Table, find: Find) -> None:
    """Shards of a table whose columns of songs hold the songs' bytes; a row group at a time.

    The cells are `bytes` and `path`: reading one needs no torchcodec.
    """
    from datasets import Audio, Features

    columns = [name for name in (*SIDES, "completion") if name in table.column_names]
    songs = {name: Audio(decode=False) for name in columns}
    schema = Features({**Features.from_arrow_schema(table.schema), **songs}).arrow_schema
    files = {path: find(path) for name in columns for path in table[name].unique().to_pylist()}
    sizes = {path: 0 if file is None else file.stat().st_size for path, file in files.items()}
    each = np.zeros(len(table))
    for name in columns:
        each += [sizes[path] for path in table[name].to_pylist()]
    starts = [0, *(np.flatnonzero(np.diff(np.cumsum(each) // SHARD_BYTES)) + 1).tolist()]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(table)], strict=True)):
        path = folder / f"{split}-{number:05d}-of-{len(starts):05d}.parquet"
        with pa.parquet.ParquetWriter(path, schema, write_page_index=True) as writer:
            for row in range(start, max(end, start + 1), ROWS_AT_ONCE):
                batch = table.slice(row, min(ROWS_AT_ONCE, end - row))
                for name in columns:
                    cells = [_cell(path, files[path]) for path in batch[name].to_pylist()]
                    field = schema.field(name)
                    at = batch.column_names.index(name)
                    batch = batch.set_column(at, field, pa.array(cells, field.type))
                writer.write_table(batch.cast(schema))


def _cell(path: str, file: Path | None) -> dict[str, Any]:
    """A song with its bytes, named without its folder; where it is not there, its path alone."""
    if file is None:
        return {"bytes": None, "path": path}
    return {"bytes": file.read_bytes(), "path": file.name}


def push_folder(folder: Path, repo: str) -> str:
    """Make a data set folder a repository of the hub, and return its address.

    Args:
        folder: what `write_dataset` left.
        repo: `owner/name`; made where there is none. Parquet files of an earlier push go.

    Raises:
        DataError: the hub cannot be reached or refuses.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        url = hub.create_repo(repo, repo_type="dataset", exist_ok=True)
        hub.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Preference pairs of songs",
            delete_patterns="*.parquet",
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise DataError(
            f"{folder} is written, but not pushed to {repo}: {error}. Log in with `hf auth login` "
            "and push again, or upload the folder as it is"
        ) from error
    return str(url)


def pairs_card(
    options: PairOptions, counts: Mapping[str, Any], form: str, configs: Mapping[str, str],
    made_by: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """The README.md of `write_dataset`'s folder.

    Args:
        counts: `summary(result)`.
        form: `trl` or `kto`.
        configs: the digest of the files of each config. It stands in the card, so that the cache
            of `datasets` tells sets in folders of one name apart.
        made_by: `provenance` of the reward that scored the candidates; None where it is not known.
    """
    splits = [name for name in ("train", "test") if name == "train" or counts[f"n_{name}"]]
    homes = {"default": "data"}
    head = {
        "license": "unknown",
        "task_categories": ["text-to-audio"],
        "tags": ["music", "preference", "reward-model", "trl", "apex-reward"],
        "size_categories": [size_category(counts["n_pairs"])],
        "configs": [
            {
                "config_name": name,
                "description": f"content {digest}",
                "data_files": [{"split": split, "path": f"{homes.get(name, name)}/{split}-*"}
                               for split in splits],
            }
            for name, digest in configs.items()
        ],
    }  # fmt: skip
    models = (made_by or {}).get("models", {}).items()
    settings = (made_by or {}).get("reward", {}).items()
    given = [(field.name, getattr(options, field.name), field.default) for field in fields(options)]
    asked = [("strategy", options.strategy_name), ("axis", options.primary), ("seed", options.seed)]
    asked += [(name, dict(value) if isinstance(value, Mapping) else value)
              for name, value, default in given if name not in ("strategy", "axis", "seed")
              if value not in (None, (), {}, False, default)]  # fmt: skip
    drops = [*counts["dropped_candidates"].items(), *counts["dropped_pairs"].items()]
    if form == "kto" and counts["n_candidates_chosen_and_rejected"]:
        drops.append(("both chosen and rejected", counts["n_candidates_chosen_and_rejected"]))
    rulers = [(name, found["share"], "[{:.3f}, {:.3f}]".format(*found["ci95"]), found["n"])
              for name, found in counts["rulers"].items()]  # fmt: skip
    parts = [
        DEMONSTRATION if (made_by or {}).get("demonstration") else "",
        f"{counts['n_pairs']:,} pairs of songs ({counts['n_train']:,} train, {counts['n_test']:,} "
        f"test) of {counts['n_prompts_paired']:,} prompts, for TRL's `{TRAINERS[form]}`.",
        _loading(form, "audio" in configs),
        "## Columns\n\n" + markdown_table(("column", "is"), COLUMNS[form]),
        f"## How it was made\n\nBy `apex-reward pairs` {package_version()} from "
        f"{counts['n_candidates']:,} candidates of {counts['n_prompts']:,} prompts.",
        markdown_table(("option", "value"), [(name, str(value)) for name, value in asked]),
        markdown_table(("dropped, by reason", "number"), drops) if drops else "",
        "## What it teaches beside the axis\n\nThe share of pairs in which the chosen song has "
        "more of a ruler, with its 95% interval.",
        markdown_table(("ruler", "share", "95%", "pairs"), rulers) if rulers else "",
        "\n".join(f"- {warning}" for warning in counts["warnings"]),
        "## Reward" if made_by else "## Reward\n\nNot known here: the values came with the "
        "candidates.",
        markdown_table(("model", "from", "hash of the weights", "licences"),
                       [(name, about["source"], about["hash"], stated(about.get("licences", ())))
                        for name, about in models]) if models else "",
        markdown_table(("setting", "value"), [(name, str(value)) for name, value in settings
                                              if value not in (None, [])]) if settings else "",
        "## Licences and limits\n\n- The songs keep the licences of their makers, and the weights "
        "of the models above keep theirs. Whoever publishes this set needs the right to do so, and "
        "names the licence in the head of this card.\n- These are the preferences of a reward, not "
        "of people. Measure how far it agrees with people (`apex-reward arena evaluate`) before "
        "you train on it.",
    ]  # fmt: skip
    return card(head, "Preference pairs of songs", parts)


def _loading(form: str, has_audio: bool) -> str:
    lines = ["from datasets import load_dataset", "", 'pairs = load_dataset("THIS", split="train")']
    if has_audio:
        lines.append('songs = load_dataset("THIS", "audio", split="train")')
        note = "`default` holds the texts of the tokens, `audio` the songs."
    else:
        lines[0] += f"\nfrom apex_reward.pairs import to_{form}"
        lines.append(
            f"texts = to_{form}(pairs, encode=codec_tokens)  # (samples, Hz) -> ids or text"
        )
        note = (
            "It holds songs as `bytes` and `path`. A codec makes the tokens that a language model "
            "learns from. `cast_column` with `Audio()` makes players of the songs."
        )
    code = "\n".join(lines)
    return f"## Load it\n\n{note}\n\n```python\n{code}\n```"
