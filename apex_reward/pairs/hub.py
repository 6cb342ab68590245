"""Pairs as a data set in the hub's layout: a card, and Parquet in which the songs lie.

| config | holds |
|---|---|
| `default` | what the trainer takes: texts of tokens, or, where candidates have none, the songs |
| `audio` | beside tokens: the songs |

`datasets.load_dataset(folder)` reads the folder as it reads the repository that it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import table_of, write_table, write_text
from apex_reward.pairs.forms import SIDES, has_tokens, to_kto, to_trl

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 500_000_000
ROWS_AT_ONCE = 32
"""Rows of a row group: the hub's viewer reads whole ones."""
FORMS = {"trl": to_trl, "kto": to_kto}
Find = Callable[[str], Path | None]
Row = Mapping[str, Any]


def write_dataset(
    folder: Path, pairs: pa.Table, form: str, find: Find, describe: Callable[[list[str]], str]
) -> None:
    """Write pairs as a data set folder, whole: `README.md`, `data/` and, beside tokens, `audio/`.

    Args:
        folder: to write; what it held goes.
        pairs: the columns of `pairs.jsonl`.
        form: `trl` or `kto`.
        find: the file of a song by its path; None where it is not there. Its bytes go into the
            data set, under the file's name.
        describe: the card's text for the names of the configs.
    """
    rows = {split: _of_split(pairs, split) for split in ("train", "test")}
    rows = {split: part for split, part in rows.items() if len(part) or split == "train"}
    songs = {split: part if form == "trl" else _kto_songs(part) for split, part in rows.items()}
    text = has_tokens(pairs.to_pylist())
    with atomic(folder) as work:
        if text:
            for split, part in rows.items():
                made = FORMS[form](part.to_pylist())
                write_table(work / "data" / _shard(split, 0, 1), made.data.table)
        configs = ["default", "audio"] if text and _any_there(pairs, find) else ["default"]
        for split, part in songs.items() if not text or "audio" in configs else ():
            _write_songs(work / ("audio" if text else "data"), split, part, find)
        write_text(work / "README.md", describe(configs))


def push_folder(folder: Path, repo: str) -> str:
    """Make a data set folder a repository of the hub, and return its address.

    Args:
        folder: what `write_dataset` left.
        repo: `owner/name`; made where it is not there. Parquet files of an earlier push go.

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


def _of_split(pairs: pa.Table, split: str) -> pa.Table:
    import pyarrow.compute as pc

    return pairs.filter(pc.equal(pairs["split"], split))


def _kto_songs(pairs: pa.Table) -> pa.Table:
    """A row per song, prompt and label, with the path of the song."""
    import pyarrow as pa

    rows = to_kto(
        {name: row[name] for name in ("prompt", "prompt_id", *SIDES)} for row in pairs.to_pylist()
    )
    plain = rows.data.table.to_pylist()
    if not plain:
        kinds = (pa.string(), pa.string(), pa.bool_())
        return pa.schema(zip(("prompt", "completion", "label"), kinds, strict=True)).empty_table()
    return table_of([{**row, "completion": row["completion"]["path"]} for row in plain])


def _any_there(pairs: pa.Table, find: Find) -> bool:
    return any(find(path) is not None for side in SIDES for path in pairs[side].to_pylist())


def _write_songs(folder: Path, split: str, table: pa.Table, find: Find) -> None:
    """Shards of a table whose columns of songs hold the songs' bytes; a row group at a time."""
    import pyarrow.parquet
    from datasets import Audio, Features

    columns = [name for name in (*SIDES, "completion") if name in table.column_names]
    features = Features.from_arrow_schema(table.schema)
    schema = Features({**features, **{name: Audio() for name in columns}}).arrow_schema
    files = {path: find(path) for name in columns for path in table[name].unique().to_pylist()}
    sizes = {path: file.stat().st_size for path, file in files.items() if file is not None}
    starts = _shards([sum(sizes.get(row[name], 0) for name in columns)
                      for row in table.select(columns).to_pylist()])  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(table)
        path = folder / _shard(split, number, len(starts))
        with pyarrow.parquet.ParquetWriter(path, schema, write_page_index=True) as writer:
            for batch in _batches(table.slice(start, end - start)):
                writer.write_table(_with_songs(batch, columns, files, schema))


def _shards(sizes: Sequence[int]) -> list[int]:
    """The first row of each shard, so that each holds about `SHARD_BYTES` of songs."""
    numbers = np.cumsum(sizes) // SHARD_BYTES
    return [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()]


def _shard(split: str, number: int, of: int) -> str:
    return f"{split}-{number:05d}-of-{of:05d}.parquet"


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(1, len(table)), ROWS_AT_ONCE):
        yield table.slice(start, ROWS_AT_ONCE)


def _with_songs(
    batch: pa.Table, columns: Sequence[str], files: Mapping[str, Path | None], schema: pa.Schema
) -> pa.Table:
    import pyarrow as pa

    for name in columns:
        cells = [_cell(path, files[path]) for path in batch[name].to_pylist()]
        field = schema.field(name)
        at = batch.column_names.index(name)
        batch = batch.set_column(at, field, pa.array(cells, field.type))
    return batch.cast(schema)


def _cell(path: str, file: Path | None) -> dict[str, Any]:
    """A song with its bytes, named without its folder; where it is not there, its path alone."""
    if file is None:
        return {"bytes": None, "path": path}
    return {"bytes": file.read_bytes(), "path": file.name}
