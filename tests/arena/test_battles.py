import json

import numpy as np
import pytest

from apex_reward.arena.battles import battles_of, score_names
from apex_reward.arena.cells import truth
from apex_reward.arena.reading import load_battles, load_embeddings
from apex_reward.arena.sources import BattleFilter, audio_path, filter_rows, read_rows
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import write_table


def row(uuid="1", preference="A", a=1.0, b=0.0, **cells):
    return {"battle_uuid": uuid, "preference": preference, "s_a": a, "s_b": b, **cells}


def test_votes_duplicates_and_spellings_are_counted():
    rows = [
        row("1", "A", system_a="MusicGen medium", system_b="lyria"),
        row("2", " both bad ", system_a="musicgen-medium", system_b="lyria"),
        row("3", "tie", system_a="musicgen-medium", system_b="Lyria"),
        row("1", "B", system_a="lyria", system_b="musicgen-medium"),
        row("4", "left", system_a="lyria", system_b="lyria"),
        row("5", None, system_a="lyria", system_b="lyria"),
    ]
    battles = battles_of(rows)
    assert battles.n_read == 6
    assert battles.vote.tolist() == ["A", "BOTH_BAD", "TIE"]
    assert battles.dropped == {
        **{"TIE": 0, "BOTH_BAD": 0, "missing_score": 0},
        **{"duplicate": 1, "unknown_vote": 2},
    }
    assert battles.system.tolist() == [["musicgen-medium", "lyria"]] * 3
    assert "MusicGen medium and musicgen-medium were read as one system" in battles.notes[0]


def test_battle_id_is_an_alias_and_battles_without_an_id_are_never_duplicates():
    named = [{"battle_id": "x", "preference": "A"}, {"battle_id": "x", "preference": "B"}]
    assert battles_of(named).dropped["duplicate"] == 1
    numbered = [{"battle_uuid": 0, "battle_id": 5, "preference": "A"} for _ in range(2)]
    assert battles_of(numbered).uuid.tolist() == ["0"]
    unnamed = [{"preference": "A"}, {"preference": "A"}]
    assert len(battles_of(unnamed)) == 2


def test_scores_are_numeric_pairs_that_are_not_facts_about_the_songs():
    rows = [
        {
            **row(),
            **{"system_a": "x", "system_b": "y", "duration_a": 30.0, "duration_b": 31.0},
            **{"text_a": "1", "text_b": "2", "half_a": 1.0, "flag_a": True, "flag_b": False},
            **{"count_a": 1, "count_b": None},
        },
        {**row("2"), "count_a": None, "count_b": 2},
    ]
    assert score_names(rows) == ["s", "count"]
    assert battles_of(rows, scores=["duration"]).difference("duration")[0] == -1.0
    assert battles_of(rows, scores=["text"]).difference("text")[0] == -1.0
    with pytest.raises(UsageError, match=r"no columns other_a and other_b; scores .*: s, count"):
        battles_of(rows, scores=["other"])
    with pytest.raises(UsageError, match="no score 'other'"):
        battles_of(rows).difference("other")


def test_a_cell_that_is_no_number_is_missing():
    rows = [row("1", a=float("inf")), row("2", a="soon"), row("3", a=None), row("4")]
    difference = battles_of(rows, scores=["s"]).difference("s")
    assert np.isnan(difference).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (True, 1),
        ("False", 0),
        ("yes", 1),
        (0, 0),
        (1.0, 1),
        ("vocal", 0),
        ("?", None),
        (None, None),
    ],
)
def test_instrumental_as_bool_text_or_missing(cell, expected):
    value = truth(cell)
    assert np.isnan(value) if expected is None else value == expected


def test_a_column_written_in_two_ways_is_read_and_counted(tmp_path):
    rows = [row("1", is_instrumental=True), row("2", is_instrumental="true"), row("3", a="soon")]
    battles = battles_of(rows, scores=["s"])
    np.testing.assert_equal(battles.instrumental, [1.0, 1.0, np.nan])
    assert (
        "column is_instrumental holds yes or no in 1 battles and text in 1 battles" in battles.notes
    )
    assert any(note.startswith("column s_a holds number in 2 battles") for note in battles.notes)
    for ending in ("jsonl", "csv", "parquet"):
        write_table(tmp_path / f"x.{ending}", rows)
        again = load_battles(tmp_path / f"x.{ending}", scores=["s"])
        np.testing.assert_equal(again.instrumental, [1.0, 1.0, np.nan])
        np.testing.assert_equal(again.difference("s"), [1.0, 1.0, np.nan])


def test_a_folder_and_a_csv_file_put_a_vote_in_the_same_month(tmp_path):
    clone = music_arena(tmp_path, date="2025-08-31T23:30:00-04:00")
    rows, _, _ = read_rows(clone)
    keep = ("battle_uuid", "preference", "date")
    write_table(tmp_path / "x.csv", [{name: row[name] for name in keep} for row in rows])
    folder, table = load_battles(clone), load_battles(tmp_path / "x.csv")
    assert folder.month.tolist() == table.month.tolist() == ["2025-09"] * 3


def test_a_vote_of_2099_does_not_empty_the_window():
    dates = ["2026-01-05", "2026-02-05", "2099-01-01", "soon", 1770249600000]
    rows = [row(str(n), date=date) for n, date in enumerate(dates)]
    kept, counts = filter_rows(rows, BattleFilter(last_months=1), None)
    assert [value["date"] for value in kept] == [dates[1], dates[4]]
    assert counts == {"outside_dates": 1, "unreadable_date": 2}
    battles = battles_of(rows)
    assert battles.month.tolist() == ["2026-01", "2026-02", "", "", "2026-02"]
    assert "1 dates lie in the future, as '2099-01-01'; they count as missing" in battles.notes


def test_ids_of_a_csv_file_stay_apart(tmp_path):
    (tmp_path / "x.csv").write_text(
        "battle_uuid,preference,s_a,s_b\n02,A,1,0\n2,B,1,0\n2e0,A,1,0\n"
    )
    battles = load_battles(tmp_path / "x.csv")
    assert battles.uuid.tolist() == ["02", "2", "2e0"]
    assert battles.dropped["TIE"] == 0
    assert "duplicate" not in battles.dropped


def test_prompts_are_clusters_whatever_their_case_and_spaces():
    rows = [row(str(n), prompt=text) for n, text in enumerate(["A  b", "a b ", "c", "", ""])]
    assert battles_of(rows).clusters.tolist() == [0, 0, 1, 2, 3]


def test_nothing_to_read_is_refused():
    with pytest.raises(DataError, match="no battles to read"):
        battles_of([])
    with pytest.raises(DataError, match="column 'preference'; columns: s_a, s_b"):
        battles_of([{"s_a": 1.0, "s_b": 2.0}])
    with pytest.raises(DataError, match=r"no battle has a vote .* \(2 unknown_vote\)"):
        battles_of([row("1", "x"), row("2", "y")])


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
    with pytest.raises(UsageError, match="last_months is 0"):
        BattleFilter(last_months=0)


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
    with pytest.raises(DataError, match=r"neither a file .* hub \(ConnectionError\)"):
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
