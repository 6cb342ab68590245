"""Where battles come from: folders, tables, the hub, other models' tables."""

import json

import numpy as np
import pytest

from apex_reward.arena import BattleFilter
from apex_reward.arena.battles import battles_of
from apex_reward.arena.calibration import calibrate
from apex_reward.arena.sources import (
    audio_path,
    filter_rows,
    load_battles,
    load_embeddings,
    read_rows,
)
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import write_table
from tests.arena.rows import row


def music_arena(folder, **changes):
    """A clone in the published layout: three battles in two batches, one audio file missing."""
    base = {
        "prompt": "lo-fi beats",
        "is_prebaked": False,
        "user_pseudonym": "u1",
        "total_listening_time_a": 12.5,
        "total_listening_time_b": 9.0,
        "feedback": "",
        "timestamp": 1.0,
        "lyrics": "",
        "duration_a": 30.0,
        "duration_b": 30.0,
        "sample_rate_a": 44100,
        "sample_rate_b": 48000,
    }
    votes = [
        ("01-2025JULAUG", "u-1", "2025-08-30T10:00:00-04:00", "A", True, "x.mp3", "y.mp3", {}),
        ("02-2025SEP", "u-2", "2025-09-02T10:00:00-04:00", "TIE", "false", "x.mp3", "", {}),
        (
            "02-2025SEP",
            "u-3",
            "2025-09-09T10:00:00-04:00",
            "B",
            None,
            "x.mp3",
            "gone.mp3",
            {"is_prebaked": True, "total_listening_time_b": 0.0},
        ),
    ]
    for batch, uuid, date, preference, instrumental, a, b, more in votes:
        names = [f"audio_files/{batch}/{name}" if name else "" for name in (a, b)]
        for name in names:
            if name and "gone" not in name:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"not really audio")
        value = {
            "battle_uuid": uuid,
            "date": date,
            "preference": preference,
            "is_instrumental": instrumental,
            "audio_a": names[0],
            "audio_b": names[1],
            "system_a": "sao",
            "system_b": "magenta-rt-large",
            **base,
            **more,
            **changes,
        }
        path = folder / "battle_data" / batch / f"{uuid}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


def test_a_folder_and_a_csv_file_put_a_vote_in_the_same_month(tmp_path):
    clone = music_arena(tmp_path, date="2025-08-31T23:30:00-04:00")
    rows, _, _ = read_rows(clone)
    keep = ("battle_uuid", "preference", "date")
    write_table(tmp_path / "x.csv", [{name: row[name] for name in keep} for row in rows])
    folder, table = load_battles(clone), load_battles(tmp_path / "x.csv")
    assert folder.month.tolist() == table.month.tolist() == ["2025-09"] * 3


def test_reads_the_published_layout(tmp_path):
    clone = music_arena(tmp_path)
    (clone / "battle_data" / "02-2025SEP" / "broken.json").write_text("{")
    rows, folder, dropped = read_rows(clone)
    assert [value["battle_uuid"] for value in rows] == ["u-1", "u-2", "u-3"]
    assert folder == clone
    assert dropped == {"unreadable": 1}
    battles = battles_of(rows, dropped=dropped)
    assert battles.n_read == 4
    assert battles.scores == {}
    assert battles.month.tolist() == ["2025-08", "2025-09", "2025-09"]
    np.testing.assert_equal(battles.instrumental, [1.0, 0.0, np.nan])


@pytest.mark.parametrize(
    ("keep", "left", "reasons"),
    [
        (BattleFilter(), ["u-1", "u-2", "u-3"], {}),
        (BattleFilter(last_months=1), ["u-2", "u-3"], {"outside_dates": 1}),
        (BattleFilter(last_months=2), ["u-1", "u-2", "u-3"], {}),
        (BattleFilter(binary=True), ["u-1", "u-3"], {"TIE": 1}),
        (BattleFilter(audio=True), ["u-1"], {"no_audio": 2}),
        (BattleFilter(prebaked=False), ["u-1", "u-2"], {"prebaked": 1}),
        (BattleFilter(min_listening=9.0), ["u-1", "u-2"], {"short_listening": 1}),
    ],
)
def test_filters_count_what_they_leave_out(tmp_path, keep, left, reasons):
    rows, folder, _ = read_rows(music_arena(tmp_path))
    kept, counts = filter_rows(rows, keep, folder)
    assert [value["battle_uuid"] for value in kept] == left
    assert counts == reasons


def test_month_window_reaches_over_new_year():
    dates = ["2025-10-31", "2025-11-01", "2025-12-05", "2026-01-09", "2026-02-01", None]
    rows = [row(str(n), date=date) for n, date in enumerate(dates)]
    kept, counts = filter_rows(rows, BattleFilter(last_months=4), None)
    assert [value["date"] for value in kept] == dates[1:5]
    assert counts == {"outside_dates": 2}
    with pytest.raises(DataError, match="no battle has a date"):
        filter_rows([row()], BattleFilter(last_months=4), None)


def test_audio_paths_start_from_the_folder(tmp_path):
    (tmp_path / "x.mp3").touch()
    assert audio_path({"audio_a": "x.mp3"}, "a", tmp_path) == tmp_path / "x.mp3"
    assert audio_path({"audio_a": {"path": "x.mp3"}}, "a", tmp_path) == tmp_path / "x.mp3"
    assert audio_path({"audio_a": "y.mp3"}, "a", tmp_path) is None
    assert audio_path({}, "a", tmp_path) is None


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a table, a folder or a hub id"):
        read_rows(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no battle_data"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "nothing.csv")


def test_a_hub_id_downloads_the_votes(tmp_path, monkeypatch):
    asked = {}

    def download(repo, **options):
        asked.update(repo=repo, **options)
        return str(music_arena(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    rows, _, _ = read_rows("music-arena/music-arena-dataset")
    assert len(rows) == 3
    assert asked == {
        "repo": "music-arena/music-arena-dataset",
        "repo_type": "dataset",
        "allow_patterns": ["battle_data/**"],
    }


def test_a_hub_that_does_not_answer_is_one_message(monkeypatch):
    def fails(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(
        DataError, match=r"no file or folder here, .* hub does not provide it \(ConnectionError\)"
    ):
        read_rows("somebody/something")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_in_three_forms_read_the_same(tmp_path, ending):
    rows = [
        row("1", "A", 1.5, -0.25, is_instrumental=True, date="2026-01-05", prompt="x"),
        row("2", "B", None, 2.0, is_instrumental=None, date=None, prompt="y"),
    ]
    path = tmp_path / f"battles.{ending}"
    write_table(path, rows)
    battles = load_battles(path)
    np.testing.assert_equal(battles.scores["s"], [[1.5, -0.25], [np.nan, 2.0]])
    np.testing.assert_equal(battles.instrumental, [1.0, np.nan])
    assert battles.month.tolist() == ["2026-01", ""]


def test_other_scores_join_by_battle(tmp_path):
    write_table(tmp_path / "battles.csv", [row("1"), row("2"), row("3")])
    write_table(
        tmp_path / "other.jsonl",
        [
            {"battle_uuid": "3", "t_a": 5.0, "t_b": 4.0, "preference": "B"},
            {"battle_uuid": "1", "t_a": 1.0, "t_b": 4.0},
        ],
    )
    battles = load_battles(tmp_path / "battles.csv", tables=[tmp_path / "other.jsonl"])
    np.testing.assert_equal(battles.difference("t"), [-3.0, np.nan, 1.0])
    assert battles.vote.tolist() == ["A", "A", "A"]
    write_table(tmp_path / "foreign.csv", [{"battle_uuid": "9", "t_a": 5.0, "t_b": 4.0}])
    with pytest.raises(DataError, match=r"no battle_uuid of .*foreign"):
        load_battles(tmp_path / "battles.csv", tables=[tmp_path / "foreign.csv"])


def test_tables_with_the_same_scores_are_refused_or_prefixed(tmp_path):
    """Two models with a head of one name: neither overwrites the other, in any order."""
    write_table(tmp_path / "battles.csv", [row(str(n), "AB"[n % 2], n, 3) for n in range(6)])
    for name, sign in (("apex", 1.0), ("songeval", -1.0)):
        cells = [{"battle_uuid": str(n), "clarity_a": sign * n, "clarity_b": 2.5, "s_a": None,
                  "audio_a": "x.wav"} for n in range(6)]  # fmt: skip
        write_table(tmp_path / f"{name}.csv", cells)
    apex, songeval = tmp_path / "apex.csv", tmp_path / "songeval.csv"
    for tables in ([apex, songeval], [songeval, apex]):
        with pytest.raises(UsageError, match=r"clarity_a, clarity_b\. .* --table NAME="):
            load_battles(tmp_path / "battles.csv", tables=tables)
    battles = load_battles(
        tmp_path / "battles.csv", tables=[apex, f"songeval={songeval}", f"rulers={apex}"]
    )
    assert list(battles.scores) == ["rulers.clarity", "songeval.clarity", "clarity", "s"]
    np.testing.assert_equal(battles.difference("clarity"), np.arange(6) - 2.5)
    np.testing.assert_equal(battles.difference("songeval.clarity"), -np.arange(6) - 2.5)
    # An empty column does not win over one with numbers.
    np.testing.assert_equal(battles.difference("s"), np.arange(6) - 3.0)


def test_embeddings_are_lined_up_with_battles(tmp_path):
    battles = battles_of([row("1"), row("2")])
    path = tmp_path / "embeddings.parquet"
    write_table(
        path,
        [
            {"battle_uuid": "2", "side": "B", "vector": [3.0, 4.0]},
            {"battle_uuid": "1", "side": "a", "vector": [1.0, 2.0]},
        ],
    )
    nan = np.nan
    expected = [[[1, 2], [nan, nan]], [[nan, nan], [3, 4]]]
    np.testing.assert_equal(load_embeddings(path, battles), expected)
    write_table(tmp_path / "e.csv", [{"battle_uuid": "1", "side": "a", "vector": "1.5;2"}])
    np.testing.assert_equal(load_embeddings(tmp_path / "e.csv", battles)[0, 0], [1.5, 2.0])


@pytest.mark.parametrize("cell", ["1.5;two", True, {"x": 1}, [1.0, None], [[1.0], [2.0]]])
def test_one_bad_vector_is_one_counted_battle(tmp_path, cell):
    battles = battles_of([row(str(n), "AB"[n % 2], n) for n in range(9)])
    rows = [{"battle_uuid": str(n), "side": side, "vector": [float(n), 1.0]}
            for n in range(9) for side in "ab"]  # fmt: skip
    rows[4]["vector"], rows[9]["vector"] = cell, None
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = load_embeddings(tmp_path / "e.jsonl", battles)
    assert np.isinf(vectors[2, 0]).all()
    assert np.isnan(vectors[4, 1]).all()
    assert np.isfinite(vectors).sum() == 2 * 16
    metrics, _, _ = calibrate(battles, ["s"], embeddings=vectors, bootstrap=5)
    left = metrics["dropped"]
    assert (left["unreadable"], left["missing_embedding"]) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"battle_uuid": "1", "side": "a"}], "lacks the columns vector"),
        (
            [
                {"battle_uuid": "1", "side": "a", "vector": [1.0]},
                {"battle_uuid": "1", "side": "b", "vector": [1.0, 2.0]},
            ],
            "differ in width",
        ),
        ([{"battle_uuid": "7", "side": "a", "vector": [1.0]}], "no row of"),
    ],
)
def test_embeddings_of_another_kind_are_refused(tmp_path, rows, message):
    write_table(tmp_path / "e.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_embeddings(tmp_path / "e.jsonl", battles_of([row("1")]))
