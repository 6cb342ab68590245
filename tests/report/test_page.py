"""Pages and notebook tables: escaped, complete, with players."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch

from apex_reward import Head, Scores
from apex_reward.audio import save_wav
from apex_reward.report import charts, songs
from apex_reward.report.cells import Player
from apex_reward.report.document import (
    Grid,
    Heading,
    Picture,
    Words,
    as_markdown,
    as_page,
    print_blocks,
    render,
    write_document,
)
from apex_reward.report.songs import Rows, place_songs, rows_html, with_bar

HOSTILE = "</script><script>alert('1')</script> \"quoted\" \u202e\x1b | x"


def blocks() -> list[object]:
    figure = charts.bars({HOSTILE: 2}, "battles")
    return [
        Heading("Findings", HOSTILE),
        Words(HOSTILE, "warning"),
        Picture(HOSTILE, figure, "first", note="a note"),
        Picture("Second", charts.bars({"a": 1}, "battles"), "second", wide=True),
        Grid(
            ["name", "auc", "song"],
            [[HOSTILE, 0.5516, Player(HOSTILE, "a.wav")], ["b", None, None]],
        ),
    ]


def test_a_page_escapes_every_name() -> None:
    page = as_page(HOSTILE, HOSTILE, blocks())  # type: ignore[arg-type]
    assert "alert(&#39;1&#39;)" in page
    assert "<script>alert" not in page
    assert "&#34;quoted&#34;" in page
    assert "DejaVu" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert r"\u202e\x1b" in page
    assert '<td class="number" data-column="auc"><bdi>0.552</bdi></td>' in page
    assert '<td class="number" data-column="auc"><bdi>-</bdi></td>' in page
    assert page.count("<svg role=") == 3  # the wide one is drawn twice
    assert page.count('<div class="plots">') == 1
    assert not re.search(r'(?:src|href)="?http', page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_blocks_as_markdown() -> None:
    text = as_markdown("Title", "", blocks()[2:])  # type: ignore[arg-type]
    shown = r"\</script>\<script>alert('1')\</script> \"quoted\" \\u202e\\x1b \| x".replace(
        '\\"', '"'
    )
    assert text.split("\n\n") == [
        "# Title",
        f"*{shown}: drawn in `report.html`.*",
        "*Second: drawn in `report.html`.*",
        f"| name | auc | song |\n|:--|--:|:--|\n| {shown} | 0.552 | {shown} |\n| b | - | - |\n",
    ]


def test_the_same_blocks_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_blocks(blocks())  # type: ignore[arg-type]
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Findings"
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert any("0.552" in line for line in lines)


def test_one_picture_in_a_row_fills_a_wide_window() -> None:
    """11 inches are 792 points; on a phone the same figure has its own 4 inches, 288 points."""
    page = as_page("T", "", [Picture("One", charts.histogram([1, 2], "x", "songs"), "one")])
    boxes = re.findall(r'viewBox="0 0 ([\d.]+)', page)
    assert [float(box) for box in boxes] == [288.0, 792.0]
    two = [Picture(n, charts.histogram([1, 2], "x", "songs"), n) for n in ("one", "two")]
    assert re.findall(r'viewBox="0 0 ([\d.]+)', as_page("T", "", two)) == ["288", "288"]


def test_a_table_marks_what_a_phone_shows_first() -> None:
    grid = Grid(
        ["score", "n", "accuracy", "95%", "AUC interval"], [["tj", 9, 0.5, "[0.4, 0.6]", None]]
    )
    classes = re.findall(r'<td class="([^"]*)"', as_page("T", "", [grid]))
    assert classes == ["text first", "number", "number", "number interval", "text interval"]


def test_a_document_leaves_its_pictures_when_asked(tmp_path: Path) -> None:
    write_document(tmp_path, "T", "s", blocks(), ("pdf",))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first.pdf", "report.html", "report.md", "second.pdf",
    ]  # fmt: skip


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("report/templates/base.html", subtitle="")


def test_rows_of_a_notebook_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song = tmp_path / "a'\"<b>.wav"
    save_wav(song, np.zeros((1, 80), np.float32), 8000)
    rows = [
        {"path": str(song), "clarity": 3.14159, "flags": ["dc"], "error": None},
        {"path": "absent.wav", "clarity": math.nan, "flags": [], "error": HOSTILE},
    ]
    html = rows_html([*rows, *rows], limit=2)
    assert html.count("<audio") == 1
    assert "base64,UklGR" in html  # RIFF
    assert "3.142" in html
    assert "<script>alert" not in html
    assert "&lt;b&gt;.wav" in html
    assert "2 of 4 rows." in html
    monkeypatch.setattr("apex_reward.report.songs.EMBED_BYTES", 10)
    assert rows_html(rows).count("<audio") == 0
    assert "of 2 rows" not in rows_html(rows)


def test_songs_are_embedded_copied_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "in" / name for name in ("ä #1.wav", "b.flac", "日本.mp3")]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        file.write_bytes(b"x" * (number + 1))
    page = tmp_path / "out"
    assert place_songs([files[1], None], page)[0][1] is None
    assert place_songs([files[1], None], page)[0][0].endswith("base64,eHg=")  # type: ignore[union-attr]
    monkeypatch.setattr(songs, "EMBED_BYTES", 2)
    sources, note = place_songs([*files, None], page)
    assert sources == [
        "report_files/00000-1.wav", "report_files/00001-b.flac", "report_files/00002.mp3", None,
    ]  # fmt: skip
    assert note == ""
    assert (page / "report_files" / "00002.mp3").read_bytes() == b"xxx"
    monkeypatch.setattr(songs, "COPY_BYTES", 3)
    sources, note = place_songs(files, page)
    assert sources[2] == "../in/%E6%97%A5%E6%9C%AC.mp3"
    assert note == "1 songs were too large to copy. The page plays them from their own folder."
    assert sorted(path.name for path in (page / "report_files").iterdir()) == [
        "00000-1.wav", "00001-b.flac",
    ]  # fmt: skip
    assert [path.name for path in page.iterdir()] == ["report_files"]


def test_scores_and_rows_have_a_rich_form() -> None:
    scores = Scores({"groove<1>": torch.arange(25.0)}, [Head("groove<1>", 0, 30)])
    html = scores._repr_html_()
    assert html.startswith("<table><tr><th>groove&lt;1&gt;</th></tr><tr><td>0.000</td></tr>")
    assert html.count("<td>") == 20
    assert "20 of 25 songs" in html
    rows = Rows([{"path": "a.wav", "reward": 0.5}])
    assert rows == [{"path": "a.wav", "reward": 0.5}]
    assert "0.500" in rows._repr_html_()
    assert rows[0] == {"path": "a.wav", "reward": 0.5}
    assert rows[:1]._repr_html_() == rows._repr_html_()


def test_a_bar_is_shown_in_a_notebook_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(with_bar([1, 2], 2, "songs")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(songs, "in_notebook", lambda: True)
    assert list(with_bar([1, 2], 2, "songs")) == [1, 2]
    assert "songs" in capsys.readouterr().err
