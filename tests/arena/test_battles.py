from decimal import Decimal

import numpy as np
import pytest

from apex_reward.arena import BattleFilter
from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of, score_names, truth
from apex_reward.arena.sources import filter_rows, load_battles
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import write_table
from tests.arena.rows import row


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
    assert "MusicGen medium and musicgen-medium were read as one system" in battles.notes[1]


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
    assert score_names(rows) == ["s", "text", "count"]  # text that is a plain number
    assert battles_of(rows, scores=["duration"]).difference("duration")[0] == -1.0
    assert battles_of(rows, scores=["text"]).difference("text")[0] == -1.0
    with pytest.raises(UsageError, match=r"no columns other_a and other_b; .*: s, text, count"):
        battles_of(rows, scores=["other"])
    with pytest.raises(UsageError, match="no score 'other'"):
        battles_of(rows).difference("other")


@pytest.mark.parametrize(
    ("cell", "number"),
    [("4.2", 4.2), (" -1e-3 ", -1e-3), (7, 7.0), (Decimal("1.5"), 1.5), ("soon", None),
     (True, None), ([1.0], None), ({"x": 1}, None), ("inf", None), (float("inf"), None)],
)  # fmt: skip
def test_one_odd_cell_costs_one_battle(cell, number):
    rows = [row(str(n), a=float(n)) for n in range(9)]
    rows[4]["s_a"] = cell
    battles = battles_of(rows)
    assert list(battles.scores) == ["s"]
    assert battles.unreadable.tolist() == [n == 4 and number is None for n in range(9)]
    metrics = evaluate_battles(battles, bootstrap=5)
    assert metrics["scores"]["s"]["overall"]["n"] == (8 if number is None else 9)
    assert metrics["dropped"].get("unreadable", 0) == (number is None)
    assert metrics["dropped"]["missing_score"] == 0
    found = battles.difference("s")[4]
    assert np.isnan(found) if number is None else found == number


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
    assert "s is unreadable in 1 battles" in battles.notes
    assert battles.unreadable.tolist() == [False, False, True]
    for ending in ("jsonl", "csv", "parquet"):
        write_table(tmp_path / f"x.{ending}", rows)
        again = load_battles(tmp_path / f"x.{ending}", scores=["s"])
        np.testing.assert_equal(again.instrumental, [1.0, 1.0, np.nan])
        np.testing.assert_equal(again.difference("s"), [1.0, 1.0, np.nan])


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
    first, again, *others = battles_of(rows).clusters.tolist()
    assert first == again
    assert len({first, *others}) == 4


def test_nothing_to_read_is_refused():
    with pytest.raises(DataError, match="no battles to read"):
        battles_of([])
    with pytest.raises(DataError, match="column 'preference'; columns: s_a, s_b"):
        battles_of([{"s_a": 1.0, "s_b": 2.0}])
    with pytest.raises(DataError, match=r"no battle has a vote .* \(2 unknown_vote\)"):
        battles_of([row("1", "x"), row("2", "y")])
