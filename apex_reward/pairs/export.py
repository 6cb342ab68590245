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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import json_line, table_of, write_json, write_table, write_text
from apex_reward.pairs import forms
from apex_reward.pairs.build import PairSet, dropped_table, pair_rows, pairs_table
from apex_reward.pairs.constraints import song_file
from apex_reward.pairs.report import pairs_card, summary

FORMS = {"trl": forms.to_trl, "kto": forms.to_kto}
DOCUMENTS: dict[str, Callable[[Iterable[Mapping[str, Any]]], Any]] = {
    "tangoflux": forms.tangoflux_rows,
    "jkstep": forms.jkstep_document,
}
SPLITS = ("train", "test")
SHARD_BYTES = 500_000_000
"""Songs of a file of a split: the hub takes no file of more than 50 GB."""
ROWS_AT_ONCE = 32
"""Rows of a row group: the hub's viewer reads whole ones."""


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
        form: `folder`, or one of the table above.
        folder: where relative audio paths are tried next to the working directory.
        made_by: `provenance` of the reward behind the scores, for the card of a data set.

    Returns:
        What `summary.json` holds.
    """
    output = Path(output)
    pairs, counts = pairs_table(result), summary(result)
    write_table(output / "pairs.parquet", pairs)
    lines = {"pairs.jsonl": pair_rows(result), "dropped.jsonl": dropped_table(result).to_pylist()}
    for name, rows in lines.items():
        with atomic(output / name) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(map(json_line, rows))
    write_json(output / "summary.json", counts)
    if form in FORMS:
        write_dataset(
            output / form,
            pairs,
            list(pair_rows(result)),
            form,
            lambda path: song_file(path, folder),
            lambda configs: pairs_card(result.options, counts, form, configs, made_by),
        )
    elif form in DOCUMENTS:
        duration = result.candidates.numbers["duration"]
        shorter = np.fmin(duration[result.chosen], duration[result.rejected]).tolist()
        both = zip(pair_rows(result), shorter, strict=True)
        made = [row | {"seconds": seconds} for row, seconds in both]
        for split in SPLITS:
            own = [row for row in made if row["split"] == split]
            if own or split == "train":  # a trainer takes an empty file for a broken one
                document = DOCUMENTS[form](own)
                text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
                write_text(output / form / f"{split}.json", text + "\n")
    return counts


def write_dataset(
    folder: Path,
    pairs: pa.Table,
    rows: Sequence[Mapping[str, Any]],
    form: str,
    find: Callable[[str], Path | None],
    describe: Callable[[dict[str, str]], str],
) -> None:
    """Write pairs as a data set folder, whole: `README.md`, `data/` and, beside tokens, `audio/`.

    Args:
        folder: to write; its content is replaced.
        pairs: the columns of `pairs.jsonl`.
        rows: the rows of `pairs.jsonl`.
        form: `trl` or `kto`.
        find: the file of a song by its path; None where there is none. Its bytes go into the
            data set, under the file's name.
        describe: the card's text for the digest of each config's files by the config's name.
    """
    paths = [path for side in forms.SIDES for path in pairs[side].to_pylist()]
    text, there = forms.has_tokens(rows), any(map(find, paths))
    homes = {"default": "data", "audio": "audio"} if text and there else {"default": "data"}
    with atomic(folder) as work:
        for split in SPLITS:
            own = [row for row in rows if row["split"] == split]
            if not own and split == "test":
                continue
            songs = pairs.filter(pc.equal(pairs["split"], split))
            if form == "kto":
                made = [(p["prompt"], p[side], side == "chosen") for p, side in forms.unpaired(own)]
                names = ("prompt", "completion", "label")
                songs = table_of([dict(zip(names, row, strict=True)) for row in made])
            if text:
                _write_shards(work / "data", split, FORMS[form](own).data.table, (), find)
            if there or not text:
                home = work / ("audio" if text else "data")
                _write_shards(home, split, songs, (*forms.SIDES, "completion"), find)
        digests = {config: _digest(work / home) for config, home in homes.items()}
        write_text(work / "README.md", describe(digests))


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _write_shards(
    folder: Path,
    split: str,
    table: pa.Table,
    songs: Sequence[str],
    find: Callable[[str], Path | None],
) -> None:
    """Shards of a table whose columns of songs hold the songs' bytes; a row group at a time.

    The cells are `bytes` and `path`: reading one needs no torchcodec.
    """
    from datasets import Audio, Features

    columns = [name for name in songs if name in table.column_names]
    features = Features.from_arrow_schema(table.schema)
    schema = Features(features | dict.fromkeys(columns, Audio(decode=False))).arrow_schema
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
                    field, at = schema.field(name), batch.column_names.index(name)
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
