"""Tar shards in WebDataset's layout and addresses as inputs of `score`.

fsspec's file system in memory stands in for the hub's, which `hf://` names.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest

from apex_reward.errors import DataError
from apex_reward.model import ApexReward
from apex_reward.rewards.reward import Reward
from apex_reward.scoring import find_songs, score_songs, score_to_file

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("z/link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


@pytest.fixture
def members(songs: list[str]) -> Members:
    content = [Path(song).read_bytes() for song in songs]
    return [
        ("a/0001.wav", content[0]),
        ("a/0001.json", json.dumps({"prompt_id": 7, "prompt": "x", "none": None}).encode()),
        ("a/0001.txt", b" a quiet song\n"),
        ("a/0002.wav", content[2]),  # no audio
        ("../../0003.flac.wav", content[1]),
        ("b/0004.json", b"{}"),
        ("b/0005.json", b"{broken"),
        ("b/0005.wav", content[3]),
        ("b/0006.wav", content[4]),
    ]


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz")])
def test_a_shard_s_songs_are_scored_as_their_files(
    model: ApexReward, songs: list[str], members: Members, tmp_path: Path, name: str, mode: str
) -> None:
    path = str(write_tar(tmp_path / name, members, mode))
    found = find_songs([path], tmp_path / "out.songs")
    assert [source.columns["key"] for source in found] == [
        "a/0001", "a/0002", "../../0003", "b/0004", "b/0005", "b/0006",
    ]  # fmt: skip
    assert found[0].columns == {
        "shard": path, "key": "a/0001", "prompt_id": 7, "prompt": "a quiet song",
    }  # fmt: skip
    rows = list(score_songs(model, found))
    errors = [row["error"] for row in rows]
    assert "is not audio" in errors[1]
    assert errors[3:5] == ["holds no song", "'b/0005.json' is no JSON object"]
    assert [row["path"] for row in rows[3:5]] == [f"{path}/b/0004", f"{path}/b/0005"]
    assert pickle.loads(pickle.dumps(found[3].path)).reason == errors[3]  # as Ray's actors get it
    direct = list(score_songs(model, [songs[0], songs[1], songs[4]]))
    for row, expected in zip([rows[0], rows[2], rows[5]], direct, strict=True):
        assert {name: row[name] for name in expected if name != "path"} == {
            name: value for name, value in expected.items() if name != "path"
        }
    written = {file.name for file in (tmp_path / "out.songs").iterdir()}
    assert len(written) == 4
    assert [s.path for s in find_songs([path], tmp_path / "out.songs")] == [s.path for s in found]


def test_rows_of_a_shard_are_the_same_without_an_output(
    model: ApexReward, members: Members, tmp_path: Path, there: str
) -> None:
    path = str(write_tar(tmp_path / "s.tar", members))
    score_to_file(Reward(model), find_songs([path], tmp_path / "f.songs"), tmp_path / "f.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    piped = list(score_songs(model, find_songs([path])))
    assert [list(row) for row in piped] == [list(row) for row in kept]
    assert [{**row, "path": ""} for row in piped] == [{**row, "path": ""} for row in kept]
    assert [row["shard"] for row in piped] == [path] * 6
    assert [row["path"] for row in piped] == [
        f"{path}/{name}"
        for name in ("a/0001.wav", "a/0002.wav", "../../0003.flac.wav", "b/0004", "b/0005",
                     "b/0006.wav")
    ]  # fmt: skip
    assert all(Path(row["path"]).is_file() for row in kept if row["error"] is None)
    (row,) = score_songs(model, find_songs([f"{there}/1.wav"]))
    assert row["path"] == row["source"]
    assert row["path"].endswith("/songs/1.wav")


def test_a_cut_shard_gives_its_whole_songs_and_says_where_it_ends(
    model: ApexReward, members: Members, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "s.tar", members)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = find_songs([str(path)])
    rows = list(score_songs(model, [source.path for source in found]))
    assert rows[0]["error"] is None
    assert rows[-1]["error"] is not None or "truncated" in rows[-1]["flags"]
    (tmp_path / "text.tar").write_text("no tar at all")
    for name, message in (("text.tar", "as a tar shard"), ("gone.tar", "does not exist")):
        with pytest.raises(DataError, match=message):
            find_songs([str(tmp_path / name)])


@pytest.fixture
def there(songs: list[str], members: Members, tmp_path: Path) -> Iterator[str]:
    """A folder of a file system that is not this machine's."""
    system = fsspec.filesystem("memory")
    root = "/datasets/user/name"
    for name in (0, 1):
        system.pipe_file(f"{root}/songs/{name}.wav", Path(songs[name]).read_bytes())
    system.pipe_file(f"{root}/songs/notes.md", b"no song")
    shard = write_tar(tmp_path / "s.tar", members[:3])
    system.pipe_file(f"{root}/songs/deep/s.tar", shard.read_bytes())
    yield f"memory:/{root}/songs"
    system.rm(root, recursive=True)


def test_an_address_stands_for_its_songs(
    model: ApexReward, songs: list[str], there: str, tmp_path: Path
) -> None:
    folder = tmp_path / "f.songs"
    found = find_songs([there], folder)
    names = [source.columns["source"].rpartition("/songs/")[2] for source in found]
    assert names == ["0.wav", "1.wav", "deep/s.tar"]
    assert found[2].columns["prompt"] == "a quiet song"
    assert len(find_songs([f"{there}/*.wav"], folder)) == 2
    (one,) = find_songs([f"{there}/1.wav"], folder)
    assert one.path == found[1].path
    fsspec.filesystem("memory").pipe_file("/datasets/user/name/songs/0.wav", b"another")
    assert Path(find_songs([there], folder)[0].path).read_bytes() == Path(songs[0]).read_bytes()
    score_to_file(Reward(model), found, tmp_path / "f.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist()
    (first, second) = score_songs(model, songs[:2])
    assert [row["clarity"] for row in rows] == [
        first["clarity"], second["clarity"], first["clarity"],
    ]  # fmt: skip
    (gone,) = find_songs(["memory://gone/x.wav"])
    (row,) = score_songs(model, [gone.path])
    assert (row["path"], row["error"]) == ("memory://gone/x.wav", "does not exist")
    with pytest.raises(DataError, match="memory://gone does not exist"):
        find_songs(["memory://gone"])
    with pytest.raises(DataError, match="nosuch://x cannot be read: Protocol not known"):
        find_songs(["nosuch://x"])
