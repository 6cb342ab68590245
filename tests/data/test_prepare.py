"""Metadata to a manifest: columns, filters, report."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.audio import workers as worker
from apex_reward.cli import app
from apex_reward.data.labels import scores_of_counts
from apex_reward.data.metadata import read_metadata
from apex_reward.data.prepare import balance_platforms, prepare, split_songs
from apex_reward.data.settings import PrepareSettings
from apex_reward.errors import DataError
from apex_reward.files.tables import read_jsonl, read_table, write_table

OLD, NEWEST = "2024-01-01T00:00:00Z", "2024-06-15T00:00:00Z"


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    made = [
        {"id": f"s{i}", "play_count": 10 + i, "upvote_count": i, "created_at": OLD}
        for i in range(count)
    ]
    return [{**row, **changes} for row in made]


def test_filters_are_counted_by_reason(tmp_path: Path) -> None:
    table = rows(40)
    table += rows(1, id="zero", play_count=0)
    table += rows(1, id="lost", play_count=None)
    table += rows(1, id="negative", upvote_count=-1)
    table += rows(1, id="s0")
    table += rows(1, id="newest", created_at=NEWEST)
    table += rows(1, id="fresh", created_at="2024-06-02T00:00:00Z")  # 13 days before
    table += rows(1, id="aged", created_at="2024-06-01T00:00:00Z")  # 14 days before
    table += rows(1, id="undated", created_at=None)
    write_table(tmp_path / "suno.jsonl", table)
    songs = read_metadata(tmp_path / "suno.jsonl")
    report = prepare(songs, PrepareSettings(), tmp_path / "out")
    assert report["rows_in"] == 48
    assert report["dropped"] == {
        "counts missing or negative": 2,
        "duplicate audio_id": 1,
        "released within two weeks of the newest": 2,
        "zero streams": 1,
    }
    assert report["kept"] == 42
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    manifest = read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert {"aged", "undated"} <= {row["audio_id"] for row in manifest}
    expected = scores_of_counts([row["streams"] for row in manifest])
    np.testing.assert_allclose([row["score_streams"] for row in manifest], expected)
    assert manifest[0]["path"] == "s0.mp3"
    assert {row["platform"] for row in manifest} == {"suno"}
    assert report["splits"] == {"train": 36, "test": 4, "val": 2}
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == 6


def test_audio_is_checked(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal((1, 2400))).astype(np.float32) for _ in range(20)]
    table = []
    for i, sound in enumerate(sounds):
        save_wav(audio / f"{i}.wav", sound, 24_000)
        table.append({"audio_id": f"a{i}", "path": f"{i}.wav", "streams": i + 1, "likes": i})
    save_wav(audio / "again.wav", sounds[3], 24_000)
    (audio / "broken.wav").write_text("no audio")
    spoilt = ("again", "broken", "missing")
    table += [{"audio_id": n, "path": f"{n}.wav", "streams": 5, "likes": 5} for n in spoilt]
    write_table(tmp_path / "songs.csv", table)
    songs = read_metadata(tmp_path / "songs.csv")
    reports = [
        prepare(songs, PrepareSettings(audio), tmp_path / str(workers), workers)
        for workers in (0, 2)
    ]
    assert reports[0]["dropped"] == {"duplicate audio": 1, "unreadable audio": 2}
    assert reports[0] == reports[1]
    details = {row["audio_id"]: row for row in read_jsonl(tmp_path / "0" / "dropped.jsonl")}
    assert "does not exist" in details["missing"]["detail"]
    for name in ("manifest.parquet", "report.json", "dropped.jsonl", "score_likes.png"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_decoder_that_is_killed_costs_one_song(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    for i in range(20):
        sound = (0.1 * rng.standard_normal((2, 2400))).astype(np.float32)
        save_wav(tmp_path / f"{i}.wav", sound, 24_000)
    # The same left channel alone makes no duplicate.
    sound[1] *= -1
    save_wav(tmp_path / "20.wav", sound, 24_000)
    code = """
import os, signal
from apex_reward.audio import workers as worker
from apex_reward.cli import app
real = worker.stream_file
def stream_file(path):
    if path.endswith("7.wav"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
worker.stream_file = stream_file
worker.serve()
"""
    monkeypatch.setattr(worker, "WORKER_COMMAND", (sys.executable, "-c", code))
    names = [{"audio_id": f"a{i}", "path": f"{i}.wav", "streams": i + 1, "likes": i}
             for i in range(21)]  # fmt: skip
    write_table(tmp_path / "songs.csv", names)
    words = [
        "prepare",
        tmp_path / "songs.csv",
        "--audio-dir",
        tmp_path,
        "--output",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"] == {"unreadable audio": 2}
    failed = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert [row["audio_id"] for row in failed] == ["a7", "a17"]
    assert "signal SIGKILL" in failed[0]["detail"]


def test_platforms_are_balanced(tmp_path: Path) -> None:
    write_table(tmp_path / "s.csv", rows(60, created_at=None))
    udio = [{"id": f"u{i}", "plays": i + 1, "likes": i} for i in range(20)]
    write_table(tmp_path / "u.csv", udio)
    songs = pd.concat([read_metadata(tmp_path / name) for name in ("s.csv", "u.csv")])
    balanced = prepare(songs, PrepareSettings(), tmp_path / "a")
    assert balanced["platforms"] == {"suno": 20, "udio": 20}
    assert balanced["dropped"] == {"balance of platforms": 40}


def test_balance_needs_a_platform_column(tmp_path: Path) -> None:
    """5,000 and 10 songs of two tables without platforms stay 5,010 songs."""
    for name, count in (("large", 5000), ("small", 10)):
        table = [{"audio_id": f"{name}{i}", "streams": i + 1, "likes": i} for i in range(count)]
        write_table(tmp_path / f"{name}.csv", table)
    songs = pd.concat([read_metadata(tmp_path / f"{n}.csv") for n in ("large", "small")])
    report = prepare(songs, PrepareSettings(), tmp_path / "out")
    assert (report["kept"], report["dropped"], report["balanced"]) == (5010, {}, False)
    assert report["platforms"] == {"unknown": 5010}
    table = [{"audio_id": f"{i}", "streams": i + 1, "likes": i, "platform": "ab"[i % 3 == 0]}
             for i in range(60)]  # fmt: skip
    write_table(tmp_path / "named.csv", table)
    report = prepare(read_metadata(tmp_path / "named.csv"), PrepareSettings(), tmp_path / "out")
    assert (report["platforms"], report["balanced"]) == ({"a": 20, "b": 20}, True)


@pytest.mark.parametrize("cell", ["many", True, [1, 2], {"n": 3}])
@pytest.mark.parametrize("column", ["play_count", "upvote_count"])
def test_one_bad_cell_is_one_counted_row(tmp_path: Path, cell: object, column: str) -> None:
    table = rows(30, created_at=None)
    table[7][column] = cell
    table[8][column] = "12"  # a number in a text
    write_jsonl(tmp_path / "suno.jsonl", table)
    report = prepare(read_metadata(tmp_path / "suno.jsonl"), PrepareSettings(), tmp_path / "out")
    assert (report["unreadable"], report["kept"]) == (1, 29)
    assert report["dropped"] == {f"unreadable: {column}": 1}
    (row,) = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert (row["audio_id"], row["reason"]) == ("s7", f"unreadable: {column}")


def write_jsonl(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))


def test_few_songs_fill_every_split_and_are_warned_of(tmp_path: Path) -> None:
    write_table(tmp_path / "s.csv", rows(5, created_at=None))
    report = prepare(read_metadata(tmp_path / "s.csv"), PrepareSettings(), tmp_path / "out")
    assert report["splits"] == {"test": 1, "train": 3, "val": 1}
    assert report["warnings"] == [
        f"the split {name} has 1 songs; figures of fewer than 30 songs vary widely"
        for name in ("val", "test")
    ]


def test_nothing_left(tmp_path: Path) -> None:
    write_table(tmp_path / "s.csv", rows(3, play_count=0))
    with pytest.raises(DataError, match=r"no song of 3 is left.*3 zero streams"):
        prepare(read_metadata(tmp_path / "s.csv"), PrepareSettings(), tmp_path / "out")


def test_audio_that_no_column_names_is_asked_for(tmp_path: Path) -> None:
    save_wav(tmp_path / "take1.wav", np.full((1, 2400), 0.1, np.float32), 24_000)
    write_table(tmp_path / "meta.csv", [{"id": "a", "plays": 1, "likes": 1, "take": "take1.wav"}])
    told: list[tuple[int, int]] = []
    with pytest.raises(DataError) as found:
        prepare(
            read_metadata(tmp_path / "meta.csv"), PrepareSettings(tmp_path), tmp_path / "out", 0,
            lambda done, total: told.append((done, total)),
        )  # fmt: skip
    assert told == [(1, 1)]
    text = str(found.value)
    assert text.startswith("no song of 1 is left after the filters: 1 unreadable audio. The first")
    assert "The first, a.mp3: does not exist" in text
    assert text.endswith("by another with --path-column, or else are <audio_id>.mp3")
    songs = read_metadata(tmp_path / "meta.csv", columns={"path": "take"})
    assert prepare(songs, PrepareSettings(tmp_path), tmp_path / "out")["kept"] == 1


def test_explicit_columns_go_before_presets(tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", [{"key": "k1", "heard": "1,204", "hearts": 3}])
    columns = {"audio_id": "key", "streams": "heard", "likes": "hearts"}
    songs = read_metadata(tmp_path / "x.csv", columns=columns)
    assert (songs.audio_id.tolist(), songs.platform.tolist()) == (["k1"], [""])
    assert (songs.streams.tolist(), songs.likes.tolist()) == ([1204.0], [3.0])


@pytest.mark.parametrize(
    ("aged", "fresh"),
    [
        ("20240501", "20240602"),
        ("2024-05-01", "2024-06-02"),
        ("1714521600000", "1717286400000"),
        ("May 1, 2024", "2 June 2024"),
    ],
)
def test_the_release_filter_reads_dates_in_many_forms(
    tmp_path: Path, aged: str, fresh: str
) -> None:
    newest = {"20240501": "20240610", "1714521600000": "1717977600000"}.get(aged, "2024-06-10")
    table = rows(30, created_at=aged) + rows(1, id="fresh", created_at=fresh)
    table += rows(1, id="newest", created_at=newest)
    write_table(tmp_path / "suno.csv", table)
    report = prepare(read_metadata(tmp_path / "suno.csv"), PrepareSettings(), tmp_path / "out")
    assert report["dropped"] == {"released within two weeks of the newest": 2}
    assert report["dates_not_used"] == {}


def test_dates_that_are_not_used_are_reported_and_switch_nothing_off(tmp_path: Path) -> None:
    table = rows(30) + rows(1, id="newest", created_at=NEWEST)
    table += rows(1, id="typo", created_at="2099-01-01") + rows(1, id="year", created_at="2024")
    table += rows(1, id="words", created_at="last spring") + rows(1, id="none", created_at=None)
    write_table(tmp_path / "suno.jsonl", table)
    report = prepare(read_metadata(tmp_path / "suno.jsonl"), PrepareSettings(), tmp_path / "out")
    assert report["dropped"] == {"released within two weeks of the newest": 1}
    assert report["dates_not_used"] == {"in the future": 1, "cannot be read": 2}


def test_a_file_of_bare_years_drops_nothing_as_new(tmp_path: Path) -> None:
    write_table(tmp_path / "suno.csv", rows(30, created_at=2024))
    report = prepare(read_metadata(tmp_path / "suno.csv"), PrepareSettings(), tmp_path / "out")
    assert report["dropped"] == {}
    assert report["dates_not_used"] == {"cannot be read": 30}


def test_ids_of_a_csv_file_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,key,plays,likes\n000002,007,5,1\n0e0,1e3,6,2\n")
    songs = read_metadata(tmp_path / "x.csv")
    assert songs.audio_id.tolist() == ["000002", "0e0"]
    assert songs.path.tolist() == ["000002.mp3", "0e0.mp3"]
    named = read_metadata(tmp_path / "x.csv", columns={"audio_id": "key"})
    assert named.audio_id.tolist() == ["007", "1e3"]


def test_split_shares_in_every_stratum() -> None:
    rng = np.random.default_rng(0)
    platforms = ["suno"] * 4000 + ["udio"] * 2000
    scores = rng.uniform(0, 100, 6000)
    splits = np.array(split_songs(platforms, scores, seed=1))
    assert Counter(splits.tolist()) == {"train": 5100, "test": 600, "val": 300}
    for name in ("suno", "udio"):
        for low in range(0, 100, 20):
            chosen = (np.array(platforms) == name) & (scores >= low) & (scores < low + 20)
            share = (splits[chosen] == "train").mean()
            assert abs(share - 0.85) < 0.03


@given(st.integers(10, 70), st.integers(0, 5))
def test_split_is_total_and_seeded(count: int, seed: int) -> None:
    scores = np.arange(count)[::-1]
    splits = split_songs(["x"] * count, scores, seed)
    assert splits == split_songs(["x"] * count, scores, seed)
    counts = Counter(splits)
    for name, share in (("train", 0.85), ("test", 0.10), ("val", 0.05)):
        assert abs(counts[name] - share * count) <= 1


@pytest.mark.parametrize("count", [3, 5, 9, 10])
def test_a_few_songs_leave_none_of_the_splits_empty(count: int) -> None:
    wanted = {"train": count - 2, "test": 1, "val": 1}
    assert Counter(split_songs(["x"] * count, range(count), 0)) == wanted


def test_balance_and_split_draw_as_they_always_did() -> None:
    """The same seed gives the same songs as one draw after the other."""
    rng = np.random.default_rng(3)
    scores, platforms = rng.uniform(0, 100, 137), ["b", "a", "a"] * 45 + ["b", "b"]
    kept: list[int] = []
    for number, name in enumerate("ab"):
        chosen = np.flatnonzero(np.array(platforms) == name)
        draw = np.random.default_rng([5, number])
        ordered = chosen[np.argsort(scores[chosen], kind="stable")]
        kept += [int(draw.choice(run)) for run in np.array_split(ordered, platforms.count("b"))]
    assert balance_platforms(platforms, scores, 5).tolist() == sorted(kept)
    order, draw = np.lexsort((scores, platforms)), np.random.default_rng([5, 1])
    splits = split_songs(platforms, scores, 5)
    for start in range(0, 120, 20):
        dealt = draw.permutation(np.array(["train"] * 17 + ["test"] * 2 + ["val"], object))
        assert [splits[i] for i in order[start : start + 20]] == dealt.tolist()


def test_balance_keeps_the_distribution() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0, 100, 3000), rng.uniform(0, 50, 300)])
    platforms = ["suno"] * 3000 + ["udio"] * 300
    kept = balance_platforms(platforms, scores, seed=3)
    assert Counter(platforms[i] for i in kept) == {"suno": 300, "udio": 300}
    assert (np.diff(kept) > 0).all()
    suno = scores[kept[kept < 3000]]
    # One from each run of ten neighbours: quantiles stay within a run of the full sample's.
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(suno, q) - np.quantile(scores[:3000], q)) < 1.0
    assert not np.array_equal(kept, balance_platforms(platforms, scores, seed=4))


def test_one_platform_is_left_alone() -> None:
    assert balance_platforms(["x"] * 5, range(5), 0).tolist() == [0, 1, 2, 3, 4]


def test_the_order_of_rows_decides_nothing(tmp_path: Path) -> None:
    """Equal counts and repeated ids: the same songs in the same splits for any order of rows."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"s{max(i, 2)}", "path": f"{i}.mp3", "streams": int(rng.integers(1, 12)),
         "likes": int(rng.integers(9)), "platform": "ab"[i % 3 == 0]}
        for i in range(60)
    ]  # fmt: skip
    found = []
    for place, order in enumerate((range(60), rng.permutation(60).tolist())):
        write_table(tmp_path / f"{place}.csv", [rows[i] for i in order])
        songs = read_metadata(tmp_path / f"{place}.csv")
        report = prepare(songs, PrepareSettings(), tmp_path / str(place))
        kept = pq.read_table(tmp_path / str(place) / "manifest.parquet").to_pylist()
        found.append((report, {row["audio_id"]: row for row in kept}))
    assert found[0] == found[1]
