"""Where candidates come from, what their columns may hold, and what is measured on their audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from apex_reward import build_pairs
from apex_reward.errors import DataError, UsageError
from apex_reward.pairs.candidates import read_candidates
from tests.pairs.rows import songs
from tests.support import write_wav


@pytest.mark.parametrize("kind", ["list", "arrow", "datasets", "csv", "parquet", "jsonl"])
def test_every_source_gives_the_same_pairs(kind, tmp_path):
    from datasets import Dataset

    from apex_reward.files.tables import write_table

    rows = [
        {
            "prompt_id": n % 5,
            "audio": f"{n}.wav",
            "musicality": n / 3,
            "flags": ["silent"] * (n < 2),
        }
        for n in range(20)
    ]
    path = tmp_path / f"candidates.{kind}"
    if kind == "list":
        source = rows
    elif kind == "arrow":
        source = pa.Table.from_pylist(rows)
    elif kind == "datasets":
        source = Dataset.from_list(rows)
    else:
        write_table(path, rows)
        source = path
    expected = build_pairs(rows, axis="musicality", drop_flags=["silent"])
    assert len(expected[0]) == 5
    assert build_pairs(source, axis="musicality", drop_flags=["silent"]) == expected


def test_a_jsonl_of_any_types(tmp_path):
    rows = [{"prompt_id": n // 4, "audio": f"{n}.wav", "musicality": n} for n in range(12)]
    rows[4]["musicality"] = 4.5
    rows[9]["prompt_id"] = "2"
    rows[10]["tokens"] = [1, 2]
    for row in rows[5:]:
        row["flags"] = []
    rows[11]["flags"] = ["silent"]
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, dropped = build_pairs(path, axis="musicality", drop_flags=["silent"])
    found = [(pair["prompt_id"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert found == [("0", "3.wav", "0.wav"), ("1", "7.wav", "4.wav"), ("2", "10.wav", "8.wav")]
    assert len(pairs) * 2 + len(dropped) == 12


def test_columns_that_nobody_asks_for_may_hold_anything():
    rows = songs(1.0, 2.0)
    rows[0]["note"], rows[1]["note"] = 3, {"a": ["b"]}
    assert len(build_pairs(rows, axis="musicality")[0]) == 1
    _, dropped = build_pairs([*rows, {**rows[0], "audio": "x.wav"}], axis="note")
    assert "unreadable: note" in [row["reason"] for row in dropped]
    rows[0]["note"] = "three"
    with pytest.raises(DataError, match="column 'note' holds string values; an axis needs numbers"):
        build_pairs(rows, axis="note")


NUMBERS = [3.0, 4.2, 1.5]


def odd_rows(*odd):
    """Three songs with scores, and one per odd cell."""
    scores = [*NUMBERS, *odd]
    return [{"prompt_id": 1, "audio": f"{n}.wav", "musicality": s} for n, s in enumerate(scores)]


@pytest.mark.parametrize("source", ["list", "jsonl"])
def test_an_odd_cell_is_one_row_and_text_that_is_a_number_is_that_number(source, tmp_path):
    rows = odd_rows("many", True, [1.0], {"a": 1}, "4.5", None)
    if source == "jsonl":
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,), dropped = build_pairs(rows if source == "list" else tmp_path / "c.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("7.wav", "2.wav", 3.0)
    reasons = {row["audio"]: row["reason"] for row in dropped}
    assert [reasons[f"{n}.wav"] for n in (3, 4, 5, 6)] == ["unreadable: musicality"] * 4
    assert reasons["8.wav"] == "no musicality"


def test_odd_cells_of_songs_tokens_and_flags_are_one_row_each():
    rows = [{**row, "tokens": [1, 2], "flags": []} for row in odd_rows(2.0, 2.5, 3.5)]
    rows[3]["audio"], rows[4]["tokens"], rows[5]["flags"] = [1], 7, True
    (pair,), dropped = build_pairs(rows)
    assert pair["chosen_tokens"] == [1, 2]
    reasons = sorted(row["reason"] for row in dropped)
    assert reasons == [
        "not selected by best-worst", "unreadable: audio", "unreadable: flags",
        "unreadable: tokens",
    ]  # fmt: skip


def test_decimals_and_views_of_text_are_read():
    from decimal import Decimal

    table = pa.table(
        {
            "prompt_id": [1, 1],
            "audio": pa.array(["a.wav", "b.wav"], pa.string_view()),
            "musicality": pa.array([Decimal("1.25"), Decimal("3.50")]),
        }
    )
    (pair,), _ = build_pairs(table)
    assert (pair["chosen"], pair["margin"]) == ("b.wav", 2.25)


CHAT = [{"role": "system", "content": "You compose."}, {"role": "user", "content": "calm piano"}]


@pytest.mark.parametrize("source", ["list", "arrow", "jsonl"])
def test_chat_messages_stay_as_they_are(source, tmp_path):
    from apex_reward.pairs import to_kto, to_trl

    parts = [{"role": "user", "content": [{"type": "text", "text": "fast drums"}]}]
    prompts = [CHAT, CHAT] if source == "arrow" else [CHAT, CHAT, parts, parts, "plain", "plain"]
    rows = [
        {"prompt": prompt, "audio": f"{n}.wav", "musicality": float(n), "tokens": f"<{n}>"}
        for n, prompt in enumerate(prompts)
    ]
    if source == "arrow":
        given = pa.Table.from_pylist(rows)
    elif source == "jsonl":
        given = tmp_path / "c.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        given = rows
    pairs, dropped = build_pairs(given, test_share=0)
    assert dropped == []
    found = {pair["chosen"]: pair["prompt"] for pair in pairs}
    assert found == {f"{n}.wav": prompts[n] for n in range(1, len(prompts), 2)}
    chat = next(pair for pair in pairs if pair["prompt"] == CHAT)
    row = to_trl([chat])[0]
    assert row["prompt"] == CHAT
    assert row["chosen"] == [{"role": "assistant", "content": "<1>"}]
    assert to_kto([chat])["label"] == [True, False]


def test_a_data_set_dict_is_refused_and_a_stream_is_read_once():
    from datasets import Dataset, DatasetDict, IterableDataset

    rows = odd_rows()
    part = Dataset.from_list(rows)
    with pytest.raises(UsageError, match=r"DatasetDict with the splits train, test; give one of"):
        build_pairs(DatasetDict(train=part, test=part))
    read = []

    def stream():
        for row in rows:
            read.append(row["audio"])
            yield row

    pairs, _ = build_pairs(IterableDataset.from_generator(stream))
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("1.wav", "2.wav")]
    assert read == ["0.wav", "1.wav", "2.wav"]


def test_audio_may_be_path_objects_and_ids_of_two_types():
    rows = [{**row, "audio": Path(row["audio"])} for row in songs(1.0, 2.0)]
    rows[1]["prompt_id"] = "1"
    (pair,), _ = build_pairs(rows, axis="musicality")
    assert (pair["prompt_id"], pair["chosen"], pair["rejected"]) == ("1", "1.wav", "0.wav")


def test_an_empty_id_stands_for_none():
    """A row with a text and no id has the text as its id."""
    rows = songs(1.0, 2.0, 3.0, 4.0, prompt_id="", prompt="rock")
    rows[0]["prompt_id"] = "one"
    rows[2]["prompt"] = rows[3]["prompt"] = "jazz"
    pairs, _ = build_pairs(rows, axis="musicality")
    found = {(pair["prompt_id"], pair["chosen"], pair["rejected"]) for pair in pairs}
    assert found == {("jazz", "3.wav", "2.wav")}


def test_missing_columns_are_listed_together():
    with pytest.raises(DataError) as caught:
        build_pairs([{"song": "a", "loud": 1.0}], strategy="pareto", axis="x", axes=["y"])
    text = str(caught.value)
    for part in ("no column 'audio'", "'prompt_id' or 'prompt'", "no column 'x'", "no column 'y'"):
        assert part in text
    assert "the numeric columns are loud" in text


def test_audio_is_compared_by_sound(tmp_path):
    import soundfile

    song = write_wav(tmp_path / "b.wav", seconds=0.5, seed=1)
    samples, rate = soundfile.read(song, dtype="int16")
    soundfile.write(tmp_path / "b.wav", samples, rate, subtype="PCM_16")
    soundfile.write(tmp_path / "c.flac", samples, rate, subtype="PCM_16")
    write_wav(tmp_path / "a.wav", seconds=0.5, seed=2)
    write_wav(tmp_path / "d.wav", seconds=0.75, seed=3)
    (tmp_path / "e.mp3").write_text("not a song")
    rows = [
        {"prompt_id": 1, "audio": str(tmp_path / name), "musicality": float(n)}
        for n, name in enumerate(["a.wav", "b.wav", "c.flac", "d.wav", "e.mp3", "gone.wav"])
    ]
    pairs, dropped = build_pairs(rows, axis="musicality")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == (
        str(tmp_path / "gone.wav"),
        str(tmp_path / "a.wav"),
    )
    reasons = {row["audio"].rsplit("/", 1)[1]: row["reason"] for row in dropped}
    assert reasons["c.flac"] == f"duplicate audio: sounds the same as {tmp_path / 'b.wav'}"
    assert reasons["e.mp3"].startswith("unreadable audio: is not audio that can be decoded")
    assert reasons["b.wav"] == reasons["d.wav"] == "not selected by best-worst"


def test_durations_and_loudness_are_measured_where_they_are_not_given(tmp_path):
    import soundfile

    tone = 0.1 * np.sin(2 * np.pi * 997 * np.arange(24_000) / 24_000)
    for name, gain, seconds in (("a", 1, 1), ("b", 4, 1), ("c", 1.1, 1), ("d", 1, 3), ("e", 0, 1)):
        soundfile.write(tmp_path / f"{name}.wav", gain * np.tile(tone, seconds), 24_000)
    rows = [
        {"prompt_id": 1, "audio": str(tmp_path / f"{name}.wav"), "musicality": float(n)}
        for n, name in enumerate("abcde")
    ]
    loud, dropped = build_pairs(rows, strategy="all", axis="musicality", match_loudness=2.0)
    assert {p["chosen"][-5] + p["rejected"][-5] for p in loud} == {"ca", "da", "dc"}
    assert [r["reason"] for r in dropped if r["audio"].endswith("/e.wav")] == ["no loudness"]
    long, _ = build_pairs(rows, strategy="all", axis="musicality", match_duration=0.5)
    assert all("d.wav" not in pair["chosen"] + pair["rejected"] for pair in long)
    assert len(long) == 6


def test_tangoflux_lists_become_candidates(tmp_path):
    groups = [
        [{"id": 7, "sample": n, "path": f"{n}.wav", "captions": "rock", "musicality": n}
         for n in range(2)],
        [{"id": 8, "sample": 0, "path": "x.wav", "captions": "jazz", "musicality": 5}],
    ]  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(groups))
    table = read_candidates(path)
    assert table["prompt_id"].to_pylist() == [7, 7, 8]
    assert table["prompt"].to_pylist() == ["rock", "rock", "jazz"]
    assert table["audio"].to_pylist() == ["0.wav", "1.wav", "x.wav"]
    assert table["sample"].to_pylist() == [0, 1, 0]
    (pair,), _ = build_pairs(path, axis="musicality")
    assert (pair["chosen"], pair["rejected"]) == ("1.wav", "0.wav")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '[{"id": 1}]', "is not TangoFlux's results.json; expected a list of lists"),
        ("x.json", '[[{"id": 1, "path": "a"}]]', "is not TangoFlux's results.json"),
        ("x.json", "[[", "cannot be read as .json"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl"),
        ("gone.json", None, "gone.json does not exist"),
        ("gone.jsonl", None, "gone.jsonl does not exist"),
    ],
)
def test_files_that_hold_no_candidates(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_candidates(tmp_path / name)


def test_something_else_is_no_source():
    for source in (3, ["a.wav"], {"audio": ["a.wav"]}):
        with pytest.raises(UsageError, match=f"candidates are {type(source).__name__}; expected"):
            read_candidates(source)


def test_ids_that_are_numbers_and_text_are_text_and_mixed_notes_stay():
    rows = [{"audio": "a", "prompt_id": 1, "note": 1}, {"audio": "b", "prompt_id": "x", "note": []}]
    table = read_candidates(rows)
    assert table["prompt_id"].to_pylist() == ["1", "x"]
    assert table["note"].to_pylist() == ["1", "[]"]
