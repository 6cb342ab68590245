"""The report: what its tables hold, players, and songs inside it or beside it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from apex_reward.audio import save_wav
from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.report import write_report


class Tables(HTMLParser):
    """The rows of all tables by their names, and the addresses of all players."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.players: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("role") == "region":
            self._rows = self.tables.setdefault(given["aria-label"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "audio":
            self.players.append(given["src"])

    def handle_endtag(self, tag):
        if tag == "table":
            self._rows = []

    def handle_data(self, data):
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()


def report_of(folder: Path, prompts: int, seconds: float | None, **options) -> Path:
    """A report of one pair per prompt; songs of `seconds`, or none at all."""
    random = np.random.default_rng(prompts)
    rows = []
    for prompt in range(prompts):
        for song in range(2):
            name = f"songs/{prompt}-{song} é#.wav"
            if seconds is not None:
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                tone = np.sin(np.arange(int(8000 * seconds)) * (0.1 + 0.01 * song + 0.001 * prompt))
                save_wav(path, 0.1 * tone.astype(np.float32), 8000)
            rows.append(
                {
                    "prompt_id": prompt,
                    "prompt": f"<b>song</b> & </script> {prompt:04d}",
                    "audio": name,
                    "musicality": float(random.uniform(1, 5)),
                    "group": f"artist {prompt % 7}",
                }
            )
    chosen = PairOptions(axis="musicality", **options)
    result = build(read_candidates(rows), chosen, folder)
    write_report(result, folder / "out", folder)
    return folder / "out" / "report.html"


@pytest.mark.parametrize("embedded", [True, False])
def test_the_table_holds_every_pair_with_players(embedded, tmp_path, monkeypatch):
    if not embedded:
        monkeypatch.setattr("apex_reward.report.songs.EMBED_BYTES", 1000)
    page = report_of(tmp_path, 40, seconds=0.5, test_share=0.25, seed=1)
    text = page.read_text(encoding="utf-8")
    assert "../" not in text
    assert not re.search(r"(?<!\\w)https?://(?!www.w3.org)", text)  # nothing is fetched
    shutil.rmtree(tmp_path / "songs")  # the folder opens anywhere
    read = Tables(page.parent.rename(tmp_path / "moved") / "report.html")
    assert len(read.players) == 80
    for address in read.players:
        assert address.startswith("data:audio/" if embedded else "report_files/")
        assert embedded or (tmp_path / "moved" / address).is_file()
    head, *rows = read.tables["Pairs"]
    assert head == ["pair", "prompt", "chosen", "rejected", "margin", "split",
                    "musicality: chosen", "musicality: rejected"]  # fmt: skip
    assert len(rows) == 40
    margins = [float(row[4]) for row in rows]
    assert margins == sorted(margins)
    assert sorted(row[1] for row in rows) == [f"<b>song</b> & </script> {n:04d}" for n in range(40)]
    assert sum(row[5] == "test" for row in rows) == 10
    assert all(float(row[4]) == pytest.approx(float(row[6]) - float(row[7]), abs=2e-3)
               for row in rows)  # fmt: skip


def test_no_pair(tmp_path):
    text = report_of(tmp_path, 3, seconds=None, chosen_floor=6.0).read_text(encoding="utf-8")
    assert "chosen below the floor 6" in text
    assert '<td class="number first" data-column="pairs"><bdi>0</bdi></td>' in text
    assert "No pair was made." in text


def test_more_pairs_than_are_listed(tmp_path):
    page = report_of(tmp_path, 700, seconds=None)
    assert page.stat().st_size < 3_000_000
    assert len(Tables(page).tables["Pairs"]) == 501
    text = page.read_text(encoding="utf-8")
    assert "500 of 700 pairs, smallest margins first" in text
    assert text.count("The file was missing when this page was written.") == 1000


def test_four_axes_give_nine_plots(tmp_path):
    folder = tmp_path
    axes = ("musicality", "coherence", "clarity", "naturalness")
    rows = []
    for song in range(2):
        name = f"a_very_long_name_without_a_single_space_in_it_{song}" * 3 + ".wav"
        save_wav(folder / name, np.full(8000, 0.1 * song, np.float32), 8000)
        values = dict.fromkeys(axes, 1.25 + song)
        rows.append(
            {"prompt_id": 0, "prompt": "x" * 300, "audio": name, **values, "group": "y" * 90}
        )
    options = PairOptions(axis=axes[0], strategy="mrsd", axes=axes[1:])
    result = build(read_candidates(rows), options, folder)
    assert len(result.chosen) == 1
    write_report(result, folder / "out", folder)
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall("<figure", text)) == 9
