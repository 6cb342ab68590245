from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import (
    check_output,
    read_jsonl,
    read_table,
    with_numbers,
    write_table,
    write_text,
)

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


CELLS = [4.5, "4.2", "-1e-3", "", None, float("nan"), "N/A", "x", True, [1], {"a": 1}, "007"]
NUMBERS = [4.5, 4.2, -0.001, None, None, None, None, None, None, None, None, None]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_one_bad_cell_is_one_counted_row(tmp_path, ending):
    rows = [{"score": cell, "prompt": "7", "text": "words", "n": 1} for cell in CELLS]
    write_table(tmp_path / f"x{ending}", [*rows, *[{**rows[0], "score": 1}] * 3])
    table, unreadable = with_numbers(read_table(tmp_path / f"x{ending}"))
    assert unreadable == {"score": [7, 8, 9, 10, 11]}
    assert table["score"].to_pylist() == [*NUMBERS, 1.0, 1.0, 1.0]
    assert set(table["n"].to_pylist()) == {1}
    assert set(table["text"].to_pylist()) == {"words"}


def test_a_column_is_numbers_where_half_of_it_is_or_where_it_is_named():
    table = pa.table({"a": ["1", "x", "y"], "b": [True] * 3, "c": [[1]] * 3, "d": ["1", "x", None]})
    assert with_numbers(table)[1] == {"d": [1]}
    numbers, unreadable = with_numbers(table, ["a", "b", "c"])
    assert numbers["a"].to_pylist() == [1.0, None, None]
    assert unreadable == {"a": [1, 2], "b": [0, 1, 2], "c": [0, 1, 2]}
    infinite, unreadable = with_numbers(pa.table({"a": [1.0, float("inf"), float("nan")]}))
    assert infinite["a"].to_pylist() == [1.0, None, None]
    assert unreadable == {"a": [1]}


def test_every_kind_of_column_in_parquet_is_read(tmp_path):
    columns = {
        "decimal": pa.array([Decimal("4.20"), None], pa.decimal128(10, 2)),
        "view": pa.array(["a", None], pa.string_view()),
        "large": pa.array(["a", None], pa.large_string()),
        "words": pa.array(["a", None]).dictionary_encode(),
        "half": pa.array([0.5, None], pa.float16()),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert table.to_pydict() == {
        "decimal": [4.2, None], "view": ["a", None], "large": ["a", None], "words": ["a", None],
        "half": [0.5, None],
    }  # fmt: skip
    assert {str(kind) for kind in table.schema.types} == {"double", "string"}


def test_text_that_is_not_utf8_costs_no_file(tmp_path):
    half, name = "a \ud83d", "b\udce9"
    (tmp_path / "x.jsonl").write_bytes(b'{"p": "a \\ud83d", "q": ["\\ud83d"]}\n{"p": "b\xe9"}\n')
    assert [row["p"] for row in read_jsonl(tmp_path / "x.jsonl")] == [half, name]
    clean = [{"p": "a \\ud83d", "q": ["\\ud83d"]}, {"p": "b\\udce9", "q": None}]
    assert read_table(tmp_path / "x.jsonl").to_pylist() == clean
    for ending in (".jsonl", ".parquet"):
        write_table(tmp_path / f"y{ending}", [{"p": half, "q": ["\ud83d"]}, {"p": name}])
        assert read_table(tmp_path / f"y{ending}").to_pylist() == clean
    (tmp_path / "x.csv").write_bytes(b"prompt,other\n\xe9,1\nb,\xe9\n")
    assert read_table(tmp_path / "x.csv").to_pydict() == {
        "prompt": ["\\xe9", "b"], "other": ["1", "\\xe9"]
    }  # fmt: skip
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    cell = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xe9a")])
    pyarrow.parquet.write_table(pa.table({"p": cell}), tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet")["p"].to_pylist() == ["\\xe9a"]
    write_text(tmp_path / "x.txt", half)
    assert (tmp_path / "x.txt").read_text() == "a \\ud83d"


def test_a_result_never_replaces_its_input(tmp_path):
    (tmp_path / "x.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "x.csv")
    check_output(tmp_path / "x.csv", [tmp_path / "y.csv", None])
    with pytest.raises(UsageError, match=r"link\.csv is an input of this command"):
        check_output(tmp_path / "link.csv", [tmp_path / "x.csv"])
