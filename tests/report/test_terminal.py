"""Tables of 80 columns: numbers whole, names cut, nothing sent to the terminal."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from apex_reward.report.document import print_table

HEADS = ("streams", "likes", "coherence", "musicality", "memorability", "clarity", "naturalness")


def printed(capsys: pytest.CaptureFixture[str], *table: object) -> list[str]:
    print_table(*table)  # type: ignore[arg-type]
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_small_table_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "Title", ["name", "score"], [["a", 1.23456], ["b", None]])
    assert lines == ["Title", "name  score", "───────────", "a     1.235", "b         -"]


def test_a_long_title_costs_no_score(capsys: pytest.CaptureFixture[str]) -> None:
    title = "A very long title of a song " * 8 + "(remaster).flac"
    scores = [45.125, 33.25, 3.101, 2.202, 3.303]
    lines = printed(
        capsys, "", ("song", "time", *HEADS[:5]), [[title, "3:05", *scores], ["b", "0:01", *scores]]
    )
    assert max(map(cell_len, lines)) <= 80
    first = next(number for number, line in enumerate(lines) if line.startswith("A very"))
    assert lines[first].split()[-6:] == ["3:05", *(f"{score:.3f}" for score in scores)]
    name = " ".join(line[:16].strip() for line in lines[first:-1])
    assert "…" in name
    assert name.endswith("(remaster).flac")


def test_more_numbers_than_fit_go_on_below(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["song", *(f"songeval.head_{n:02d}" for n in range(24))]
    lines = printed(
        capsys, "", columns, [["日本語の歌の長い名前" * 4, *(n + 0.125 for n in range(24))]]
    )
    assert max(map(cell_len, lines)) <= 80
    numbers = re.findall(r"\d+\.\d{3}\b", "\n".join(lines))
    assert numbers == [f"{n + 0.125:.3f}" for n in range(24)]
    assert sum(line.startswith("song ") for line in lines) == 4


def test_names_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["\x1b[2J\x1b]0;owned\x07", "[bold]not markup[/bold]", 1]]
    print_table("\x1b[31m", ["na\u202eme", "text", "n"], rows)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert r"\x1b[2J\x1b]0;owned\x07" in out
    assert "[bold]not markup[/bold]" in out


def test_an_empty_table_has_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "left out", ("reason", "battles"), []) == [
        "left out",
        "reason  battles",
        "───────────────",
    ]
