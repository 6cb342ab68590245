"""Songs that lie inside a table: the Audio columns of `datasets`, in Parquet or a saved data set.

They are written as files once, so that everything that scores, plays or compares songs finds them.
"""

from __future__ import annotations

import atexit
import functools
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from apex_reward.errors import DataError
from apex_reward.files.atomic import atomic
from apex_reward.files.tables import reading

SONG_COLUMNS = ("audio", "path")
ROWS_AT_ONCE = 64
_SAVED = ("dataset_dict.json", "state.json")
_BEGINNINGS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}


class NoSong(str):
    """The name in rows of an input without a song, and the reason; it is never opened."""

    reason: str

    def __new__(cls, name: str, reason: str = "") -> NoSong:
        """Copies and pickles get the reason with the rest of the state."""
        song = super().__new__(cls, name)
        song.reason = reason
        return song


def is_saved_dataset(folder: str | Path) -> bool:
    """Whether a folder is a data set: `save_to_disk` wrote it, or it is in the hub's layout.

    The latter holds Parquet with songs, in itself or in `data/`.
    """
    if any(os.path.isfile(os.path.join(folder, name)) for name in _SAVED):
        return True
    try:
        return any(song_column(pyarrow.parquet.read_schema(f)) for f in _shards(folder)[:1])
    except (pa.ArrowInvalid, OSError):
        return False


def songs_beside(output: Path) -> Path:
    """The folder beside a result file that the songs inside its inputs are written into.

    >>> songs_beside(Path("out/scores.jsonl")).name
    'scores.songs'
    """
    return output.with_suffix(".songs")


def song_column(schema: pa.Schema) -> str | None:
    """The column of `SONG_COLUMNS` whose cells are songs (`bytes`, `path`), not paths, if any."""
    names = [name for name in SONG_COLUMNS if name in schema.names]
    return next((name for name in names if _is_song(schema.field(name).type)), None)


def read_songs_inside(path: str | Path, folder: Path | None = None) -> pa.Table | None:
    """A saved data set, or a Parquet file, whose songs are in it.

    Args:
        path: a folder for which `is_saved_dataset` holds, or a `.parquet` file. Splits follow each
            other.
        folder: where songs are written as files; None: a temporary one.

    Returns:
        The table with the paths of the files in its column of songs, null where a cell holds
        neither a song nor a path; other columns of songs are left out. None for a file whose
        `audio` or `path` holds no songs.

    Raises:
        DataError: not such a folder or file, or a saved data set without a column of songs.
    """
    with reading(path):
        if os.path.isdir(path):
            return unpacked(_saved_batches(path), folder, Path(path))
        with pyarrow.parquet.ParquetFile(path) as file:
            if song_column(file.schema_arrow) is None:
                return None
            return unpacked(file.iter_batches(ROWS_AT_ONCE), folder, Path(path).parent)


def unpacked(batches: Iterable[Any], folder: Path | None = None, beside: Path = Path()) -> pa.Table:
    """Batches of a table as one table whose songs are files; see `read_songs_inside`.

    Args:
        batches: tables or record batches, each with a column of songs.
        folder: where songs are written, each once.
        beside: where a relative path in a cell is looked for.

    Raises:
        DataError: no column of songs.
    """
    tables = []
    for batch in batches:
        column = song_column(batch.schema)
        if column is None:
            names = ", ".join(batch.schema.names)
            raise DataError(f"no column {' or '.join(SONG_COLUMNS)} holds songs; it has {names}")
        paths = [_file_of(cell, folder, beside) for cell in batch.column(column).to_pylist()]
        kept = [field.name for field in batch.schema if not _is_song(field.type)]
        columns = {column: pa.array(paths, pa.string())}
        tables.append(pa.table(columns | {name: batch.column(name) for name in kept}))
    if tables:
        return pa.concat_tables(tables, promote_options="permissive")
    return pa.table({"audio": pa.array([], pa.string())})


def undecoded(dataset: Any, *columns: str) -> Any:
    """The data set with its Audio columns as bytes and paths: decoding them needs torchcodec."""
    from datasets import Audio

    features = getattr(dataset, "features", None) or {}
    for column in columns:
        if isinstance(features.get(column), Audio):
            dataset = dataset.cast_column(column, Audio(decode=False))
    return dataset


def _saved_batches(folder: str | Path) -> Iterator[Any]:
    from datasets import load_from_disk

    if shards := _shards(folder):
        for shard in shards:
            with pyarrow.parquet.ParquetFile(shard) as file:
                yield from file.iter_batches(ROWS_AT_ONCE)
        return
    found = load_from_disk(str(folder))
    for part in found.values() if isinstance(found, Mapping) else (found,):
        yield from part.with_format("arrow").iter(ROWS_AT_ONCE)


def _shards(folder: str | Path) -> list[Path]:
    patterns = (os.path.join(glob.escape(str(folder)), *part, "*.parquet")
                for part in ((), ("data",)))  # fmt: skip
    return sorted(Path(path) for pattern in patterns for path in glob.glob(pattern))


def _is_song(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _file_of(cell: Mapping[str, Any] | None, folder: Path | None, beside: Path) -> str | None:
    """The path of a song's file, written where the song is bytes."""
    path, content = (None, None) if cell is None else (cell["path"], cell["bytes"])
    if content is not None:
        return song_file(path or "", content, folder)
    return str(beside / path) if path and (beside / path).is_file() else path


def song_file(name: str, content: bytes, folder: Path | None = None) -> str:
    """The path of a song that is bytes, written once into a folder; None: a temporary one.

    The file's name tells the content: the same song is the same file in every run.

    Args:
        name: of the song where it lay; the ending follows from it, or from the first bytes.
    """
    stem, ending = os.path.splitext(os.path.basename(name))
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", stem)[:60].strip("_")
    if not re.fullmatch(r"\.[A-Za-z0-9]{1,5}", ending):
        ending = next((e for b, e in _BEGINNINGS.items() if content.startswith(b)), ".audio")
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    file = songs_folder(folder) / f"{stem}{'-' if stem else ''}{digest}{ending}"
    if not file.is_file():
        with atomic(file) as temporary:
            temporary.write_bytes(content)
    return str(file)


@functools.cache
def songs_folder(folder: Path | None) -> Path:
    """The folder that songs are written into; None: one that is removed at the process's end."""
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="apex-reward-songs-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
