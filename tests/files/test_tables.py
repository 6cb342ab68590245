from __future__ import annotations

import json

import pyarrow as pa
import pytest

from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import atomic_path, mixed_columns, read_table, write_json, write_table

ROWS = [
    {"path": "a, b.wav", "score": 1.5, "flags": ["short", "silent"], "error": None, "n": 3},
    {"path": 'say "hi"\nthere.wav', "score": None, "flags": [], "error": "no audio", "n": None},
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rows_come_back_as_they_were(tmp_path, ending):
    write_table(tmp_path / f"x{ending}", ROWS)
    assert read_table(tmp_path / f"x{ending}").to_pylist() == ROWS


def test_csv_joins_lists_and_leaves_null_empty(tmp_path):
    write_table(tmp_path / "x.csv", ROWS)
    table = read_table(tmp_path / "x.csv")
    assert table["flags"].to_pylist() == ["short;silent", ""]
    assert table["score"].to_pylist() == [1.5, None]
    assert table["error"].to_pylist() == [None, "no audio"]
    assert table["path"].to_pylist() == [row["path"] for row in ROWS]


def test_nan_is_null_in_json_lines(tmp_path):
    write_table(tmp_path / "x.jsonl", [{"a": float("nan"), "b": 1}])
    assert (tmp_path / "x.jsonl").read_text() == '{"a": null, "b": 1}\n'


def test_columns_of_mixed_numbers_are_floats(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2.5, "b": "t"}\n')
    assert read_table(tmp_path / "x.jsonl").to_pylist() == [
        {"a": 1.0, "b": None},
        {"a": 2.5, "b": "t"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("x.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("x.parquet", "no parquet", "cannot be read as .parquet"),
        ("x.csv", "a,b\n1,2\n3\n", "cannot be read as .csv"),
    ],
)
def test_damaged_tables_say_where(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_other_endings_and_missing_files(tmp_path):
    with pytest.raises(UsageError, match=r"\.jsonl, \.csv, \.parquet"):
        read_table(tmp_path / "x.xlsx")
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "x.csv")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"a": float("nan")})

    def fail_halfway():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_names_in_csv_are_numbers_only_where_nothing_is_lost(tmp_path):
    (tmp_path / "x.csv").write_text("id,prompt_id,path\n1,10,+1\n20,,2\n-3,7,3\n")
    assert read_table(tmp_path / "x.csv").to_pydict() == {
        "id": [1, 20, -3],
        "prompt_id": [10, None, 7],
        "path": ["+1", "2", "3"],
    }


def test_names_in_csv_stay_text_and_numbers_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("battle_uuid,key,s_a\n000002,010,1\n0e0,020,2.5\n")
    assert read_table(tmp_path / "x.csv", text=["key"]).to_pylist() == [
        {"battle_uuid": "000002", "key": "010", "s_a": 1.0},
        {"battle_uuid": "0e0", "key": "020", "s_a": 2.5},
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_column_of_several_kinds_becomes_text(tmp_path, ending):
    rows = [{"flag": True}, {"flag": "yes"}, {"flag": None}, {"flag": 2.5}, {"flag": {"a": [1]}}]
    write_table(tmp_path / f"x{ending}", [{**row, "n": 1} for row in rows])
    column = read_table(tmp_path / f"x{ending}")["flag"].to_pylist()
    assert column == ["true", "yes", None, "2.5", '{"a": [1]}']
    assert mixed_columns([*rows, {"n": 1}, {"n": 2.0}]) == {
        "flag": {"yes or no": 1, "text": 1, "number": 1, "dict": 1}
    }


def test_an_integer_beyond_64_bits_becomes_text(tmp_path):
    write_table(tmp_path / "x.parquet", [{"n": 2**70}, {"n": 1}])
    assert read_table(tmp_path / "x.parquet")["n"].to_pylist() == [str(2**70), "1"]


def test_text_columns_of_whole_numbers_are_numbers_and_empty_ones_stay_text(tmp_path):
    (tmp_path / "x.csv").write_text("prompt_id,a,b,c\n1,7,007,\n20,,1,\n")
    table = read_table(tmp_path / "x.csv", text=["a", "b", "c"])
    assert table.to_pydict() == {
        "prompt_id": [1, 20], "a": [7, None], "b": ["007", "1"], "c": [None, None]
    }  # fmt: skip
    assert table.schema.field("c").type == pa.string()
