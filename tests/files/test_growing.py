"""Result files that grow, survive a kill at any byte, and end in three equal forms."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import read_table

SCHEMA = pa.schema(
    [("path", pa.string()), ("score", pa.float64()), ("flags", pa.list_(pa.string()))],
    metadata={"apex_reward.model": "tiny"},
)
ROWS = [
    {"path": "ä;,\n.wav", "score": 1.25, "flags": ["short", "silent"]},
    {"path": "b.wav", "score": None, "flags": []},
    {"path": "c.wav", "score": 2.0, "flags": []},
]


def write(path: Path) -> None:
    table = GrowingTable(path, SCHEMA)
    table.start()
    for row in ROWS:
        table.append([row])
    assert not path.exists()
    assert len(table.partial.read_text().splitlines()) == 3
    table.finish()
    assert not table.partial.exists()


def test_the_three_forms_hold_the_same(tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "parquet"):
        write(tmp_path / f"f.{ending}")
    lines = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    parquet = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert parquet.to_pylist() == ROWS
    assert parquet.schema.field("flags").type == pa.list_(pa.string())
    assert parquet.schema.metadata[b"apex_reward.model"] == b"tiny"
    text = (tmp_path / "f.csv").read_text(encoding="utf-8")
    assert text == (
        '"path","score","flags"\n"ä;,\n.wav",1.25,"short;silent"\n"b.wav",,""\n"c.wav",2,""\n'
    )
    assert read_table(tmp_path / "f.csv")["score"].to_pylist() == [1.25, None, 2.0]


def test_a_file_cut_at_any_byte_is_taken_up_at_a_whole_row(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "f.jsonl", SCHEMA)
    table.start()
    table.append(ROWS)
    whole = table.partial.read_bytes()
    for cut in range(len(whole) + 1):
        table.partial.write_bytes(whole[:cut])
        left = table.written()
        assert left == ROWS[: whole[:cut].count(b"}\n")]
        keep = min(cut % 4, len(left))
        table.start(keep)
        table.append(ROWS[keep:])
        assert table.partial.read_bytes() == whole


def test_rows_behind_a_damaged_one_do_not_count(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "f.jsonl", SCHEMA)
    assert table.written() == []
    for damage in (b"\x00\x00\x00\n", b"[1]\n", b"{}{}\n", b"\xff\n"):
        table.partial.write_bytes(b'{"path": "a"}\n' + damage + b'{"path": "b"}\n')
        assert table.written() == [{"path": "a"}]


def test_starting_anew_forgets_the_old_rows_and_makes_the_folder(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "new" / "f.jsonl", SCHEMA)
    table.start()
    table.append(ROWS)
    table.start()
    assert table.written() == []


def test_where_nothing_can_be_written_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "f.csv").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "f.csv", "Is a dir"),
        (tmp_path / "file" / "f.csv", "File exists"),
    ):
        with pytest.raises(UsageError, match=f"cannot be written: {reason}"):
            GrowingTable(path, SCHEMA).start()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.xlsx"):
        GrowingTable(tmp_path / "f.xlsx", SCHEMA)
