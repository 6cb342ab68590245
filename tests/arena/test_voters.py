"""Agreement of voters: published and hand-worked values, sides turned, and tables that join."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from apex_reward.arena.sources import load_battles, load_rows
from apex_reward.arena.voters import equal_and_alpha, voter_agreement, voter_words
from apex_reward.cli import app
from apex_reward.errors import DataError
from apex_reward.files.tables import write_table


def ballot(comparison, voter, preference, swapped=False, repeat=False, **more):
    return {"battle_uuid": f"{comparison}{voter}{repeat}", "comparison": comparison, "voter": voter,
            "preference": preference, "swapped": swapped, "repeat": repeat, **more}  # fmt: skip


def counts_of(units, categories):
    """Votes per category of every unit with at least two votes; None is no vote."""
    votes = [[vote for vote in unit if vote is not None] for unit in units]
    return np.array(
        [[found.count(name) for name in categories] for found in votes if len(found) > 1], float
    )


def test_alpha_of_the_published_example():
    """Krippendorff (2011), example C: four observers, twelve units, five values; nominal 0.743."""
    n = None
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
        [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
    ]  # fmt: skip
    found = equal_and_alpha(counts_of(zip(*observers, strict=True), range(1, 6)))
    assert found[1] == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_by_hand():
    """Krippendorff (2011), example A: ten units, two observers, two values; alpha 0.095."""
    one, other = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = equal_and_alpha(counts_of(zip(one, other, strict=True), (0, 1)))
    assert found == pytest.approx([0.6, 0.095], abs=5e-4)
    assert np.isnan(equal_and_alpha(np.array([[2.0, 0.0]]))[1])


def test_a_voter_counts_once_per_comparison():
    """One person who votes twice agrees with nobody: no pair of different voters is there."""
    twice = [ballot("x", "ann", "A"), ballot("x", "ann", "A", date="2026-02-02"),
             ballot("y", "ann", "B"), ballot("y", "ann", "B", date="2026-02-02")]  # fmt: skip
    found = voter_agreement(twice)
    assert found["between"]["comparisons"] == 0
    assert (found["repeats"]["comparisons"], found["repeats"]["equal"]) == (2, 1.0)
    # The first vote counts, whatever the order of rows.
    more = [*twice, ballot("x", "bob", "B"), ballot("x", "ann", "B", date="2026-03-03")]
    for rows in (more, more[::-1]):
        assert voter_agreement(rows)["between"]["equal"] == 0.0


def test_votes_are_turned_before_they_are_compared():
    rows = [
        ballot("x", "ann", "A"), ballot("x", "bob", "B", swapped=True),  # the same song
        ballot("y", "ann", "A"), ballot("y", "bob", "A", swapped="true"),  # not the same
        ballot("z", "ann", "TIE"), ballot("z", "bob", "TIE", swapped=True),
        ballot("x", "ann", "B", swapped=True, repeat=True),  # as before
        ballot("y", "ann", "BOTH_BAD", repeat=True),  # not as before
        ballot("w", "cas", "A"), {"preference": "A"}, ballot("x", "dan", "left"),
    ]  # fmt: skip
    found = voter_agreement(rows)
    between, repeats = found["between"], found["repeats"]
    assert (between["comparisons"], between["votes"]) == (3, 6)
    assert between["equal"] == pytest.approx(2 / 3)
    # six votes, three first, one second, two ties: 1 - (1 / 3) / (1 - (6 + 2) / 30)
    assert between["alpha"] == pytest.approx(1 - (1 / 3) / (1 - 8 / 30))
    assert (repeats["comparisons"], repeats["equal"]) == (2, 0.5)
    assert "67% of 3 comparisons" in voter_words(found)[0]
    assert "50% of 2 comparisons" in voter_words(found)[1]


def test_votes_of_one_voter_without_repeats_say_so():
    found = voter_agreement([ballot("x", "ann", "A")])
    assert found["between"] == found["repeats"] == {
        "comparisons": 0, "votes": 0, "equal": None, "alpha": None,
    }  # fmt: skip
    assert voter_words(found) == [
        "No two voters voted on the same comparison.",
        "No voter voted twice on a comparison.",
    ]
    assert voter_agreement([{"preference": "A"}]) == {}
    assert voter_words({}) == []


def test_votes_on_one_comparison_hang_together_without_prompts(tmp_path):
    votes = [ballot("b0", "ann", "A"), ballot("b1", "ann", "B", swapped=True),
             ballot("b1", "bob", "A"), ballot("c", "bob", "A")]  # fmt: skip
    write_table(tmp_path / "votes.jsonl", votes)
    assert load_battles(tmp_path / "votes.jsonl").clusters.tolist() == [0, 1, 1, 2]
    write_table(tmp_path / "other.csv", [{"battle_uuid": "q", "fame_a": 1, "fame_b": 2}])
    with pytest.raises(DataError, match="no battle_uuid of"):
        load_rows(tmp_path / "votes.jsonl", tables=[tmp_path / "other.csv"])


def test_evaluate_reports_voters(tmp_path):
    votes = [
        ballot(f"b{n}", voter, "AB"[(n + n % 5 * (voter == "bob")) % 2], fame_a=n, fame_b=n * n % 7)
        for n in range(12)
        for voter in ("ann", "bob")
    ]
    write_table(tmp_path / "votes.jsonl", votes)
    command = ["arena", "evaluate", str(tmp_path / "votes.jsonl"), "--bootstrap", "20",
               "--output", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["voters"]["between"]["comparisons"] == 12
    assert list(metrics["scores"]) == ["fame"]
    words = voter_words(metrics["voters"])[0]
    assert words in " ".join(result.output.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert words in html.unescape(page)
