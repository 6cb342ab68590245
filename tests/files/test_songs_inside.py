"""Songs inside tables: which columns hold them, and the files they are written as."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apex_reward.errors import DataError
from apex_reward.files.songs_inside import (
    NoSong,
    is_saved_dataset,
    read_songs_inside,
    song_column,
    song_file,
    songs_beside,
    songs_folder,
    unpacked,
)

SONG = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(content: bytes | None, path: str | None) -> dict[str, object]:
    return {"bytes": content, "path": path}


def test_the_column_of_songs() -> None:
    kinds = {"songs": SONG, "paths": pa.string(), "other": pa.struct([("bytes", pa.binary())])}
    for audio, path, found in (
        ("songs", "songs", "audio"), ("paths", "songs", "path"), ("other", "paths", None)
    ):  # fmt: skip
        schema = pa.schema([("path", kinds[path]), ("audio", kinds[audio])])
        assert song_column(schema) == found
    assert song_column(pa.schema([("song", SONG)])) is None


def test_songs_become_files_named_by_name_and_content(tmp_path: Path) -> None:
    for name, content, start, ending in (
        ("a/My song!.wav", b"x", "My_song-", ".wav"),
        ("", b"RIFF....", "", ".wav"),
        ("take.", b"fLaC....", "take-", ".flac"),
        ("", b"OggS", "", ".ogg"),
        ("x.toolong", b"ID3", "x-", ".mp3"),
        ("", b"\xff\xfb", "", ".audio"),
        ("n" * 70 + ".mp3", b"y", "n" * 60 + "-", ".mp3"),
    ):
        file = Path(song_file(name, content, tmp_path / "songs"))
        assert file.read_bytes() == content
        assert file.name.startswith(start)
        assert len(file.stem) == len(start) + 16
        assert file.suffix == ending
    before = file.stat().st_mtime_ns
    assert song_file("n" * 70 + ".mp3", b"y", tmp_path / "songs") == str(file)
    assert file.stat().st_mtime_ns == before, "written once"
    assert len({song_file("n.mp3", content, tmp_path) for content in (b"y", b"z", b"y")}) == 2


def test_cells_are_bytes_paths_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "near.wav").touch()
    cells = [cell(b"x", None), cell(None, "near.wav"), cell(None, "far.wav"), None]
    table = pa.table(
        {
            "prompt": ["a", "b", "c", "d"],
            "path": pa.array(cells, SONG),
            "stem": pa.array(cells, SONG),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_songs_inside(tmp_path / "t.parquet", tmp_path / "songs")
    assert found is not None
    assert found.column_names == ["path", "prompt"]
    assert found["prompt"].to_pylist() == ["a", "b", "c", "d"]
    written, *others = found["path"].to_pylist()
    assert Path(written).read_bytes() == b"x"
    assert Path(written).parent == tmp_path / "songs"
    assert others == [str(tmp_path / "near.wav"), "far.wav", None]


def test_a_folder_of_parquet_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        songs = pa.array([cell(None, f"{number}-{row}.wav") for row in range(70)], SONG)
        pq.write_table(pa.table({"audio": songs}), tmp_path / "data" / f"{number}.parquet")
    assert is_saved_dataset(tmp_path)
    found = read_songs_inside(tmp_path)
    assert found is not None
    assert found["audio"].to_pylist() == [f"{n}-{row}.wav" for n in range(2) for row in range(70)]


def test_what_holds_no_songs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.wav"]}), tmp_path / "paths.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    assert read_songs_inside(tmp_path / "paths.parquet") is None
    assert not is_saved_dataset(tmp_path)
    (tmp_path / "state.json").touch()
    assert is_saved_dataset(tmp_path)
    with pytest.raises(DataError, match="gone.parquet does not exist"):
        read_songs_inside(tmp_path / "gone.parquet")
    with pytest.raises(DataError, match="text.parquet cannot be read"):
        read_songs_inside(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no column audio or path holds songs; it has song, text"):
        unpacked([pa.table({"song": ["a"], "text": ["b"]})])
    assert unpacked([]).to_pydict() == {"audio": []}


def test_where_songs_go() -> None:
    assert songs_beside(Path("out/scores.csv")) == Path("out/scores.songs")
    assert songs_folder(Path("x")) == Path("x")
    temporary = songs_folder(None)
    assert temporary.is_dir()


def test_a_reason_is_kept_by_copies() -> None:
    song = NoSong("row 4", "holds no song")
    for other in (copy.copy(song), pickle.loads(pickle.dumps(song))):
        assert (str(other), other.reason) == ("row 4", "holds no song")
    assert NoSong("row 5").reason == ""
