"""The report in a real browser: no console errors, players load, headings sort, pages turn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from apex_reward.audio import save_wav
from apex_reward.pairs import plots
from apex_reward.pairs.build import build
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.reading import read_candidates
from apex_reward.pairs.report import write_report

# Runs in a copy of the page: sorts and pages by clicks, loads each player, writes what it saw.
PROBE = """
<script>
(async () => {
  const margins = () => [...document.querySelectorAll("tbody tr")].map(
    row => row.querySelectorAll("td.number")[0].textContent);
  const click = text => [...document.querySelectorAll("button")].find(
    button => button.textContent === text).click();
  const seen = { first: margins() };
  if (seen.first.length) {
    click("Margin");
    seen.turned = margins();
    click("Prompt");
    seen.prompts = [...document.querySelectorAll("td.prompt")].map(cell => cell.textContent);
    seen.order = [...document.querySelectorAll("th[aria-sort]")].map(
      head => head.getAttribute("aria-sort"));
    click("Margin");
    const next = [...document.querySelectorAll("button")].find(b => b.textContent === "Next");
    if (next) { next.click(); seen.second = margins(); }
  }
  seen.pager = document.getElementById("pager").textContent;
  const text = document.querySelector("main").textContent;
  seen.missing = text.split("not there when this report").length - 1;
  seen.lengths = await Promise.all([...document.querySelectorAll("audio")].map(
    player => new Promise(resolve => {
      player.onloadedmetadata = () => resolve(player.duration);
      player.onerror = () => resolve(player.error.message);
      player.preload = "auto";
      player.load();
    })));
  const box = document.createElement("pre");
  box.id = "seen";
  box.textContent = JSON.stringify(seen);
  document.body.append(box);
})();
</script>
"""


def opened(page: Path) -> dict:
    """What the probe saw in headless Chromium; fails on any message in the console."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "the report is tested in Chromium: install the package 'chromium'"
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the probe did not finish: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1]))


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
def test_forty_pairs_sort_and_play(embedded, tmp_path, monkeypatch):
    if not embedded:
        monkeypatch.setattr("apex_reward.pairs.report.EMBED_BYTES", 1000)
    page = report_of(tmp_path, 40, seconds=0.5)
    text = page.read_text(encoding="utf-8")
    assert ("data:audio/" in text) is embedded
    assert ("../songs/" in text) is not embedded
    assert "http" not in text  # nothing is fetched from anywhere
    seen = opened(page)
    smallest = [float(text) for text in seen["first"]]
    assert len(smallest) == 25
    assert smallest == sorted(smallest)
    largest = [float(text) for text in seen["turned"]]
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > smallest[-1]
    assert seen["prompts"] == [f"<b>song</b> & </script> {n:04d}" for n in range(25)]
    assert seen["order"] == ["ascending", "none", "none", "none"]
    both_pages = [*smallest, *map(float, seen["second"])]
    assert len(both_pages) == 40
    assert both_pages == sorted(both_pages)
    assert both_pages[-1] == largest[0]
    assert seen["pager"] == "PreviousPage 2 of 2Next"
    # 15 pairs on the second page, each player knows the length of its song.
    assert seen["lengths"] == pytest.approx([0.5] * 30, abs=0.01)


def test_one_pair(tmp_path):
    seen = opened(report_of(tmp_path, 1, seconds=0.25))
    assert (len(seen["first"]), seen["pager"]) == (1, "")
    assert seen["lengths"] == pytest.approx([0.25, 0.25], abs=0.01)


def test_no_pair(tmp_path):
    page = report_of(tmp_path, 3, seconds=None, chosen_floor=6.0)
    assert opened(page) == {"first": [], "pager": "", "missing": 0, "lengths": []}
    text = page.read_text(encoding="utf-8")
    assert "chosen below the floor 6" in text
    assert "<b>0</b><span>pairs</span>" in text


def test_more_pairs_than_are_listed(tmp_path):
    page = report_of(tmp_path, 5200, seconds=None)
    assert page.stat().st_size < 3_000_000
    seen = opened(page)
    assert seen["pager"] == "PreviousPage 2 of 200Next"
    assert seen["missing"] == 50
    assert "5,000 of 5,200, smallest margins first" in page.read_text(encoding="utf-8")


def test_histogram_bars_are_counts():
    svg = plots.histogram("Margin", "note", np.array([0.0, 0.0, 1.0, np.nan]))
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights == [154.0, 77.0]
    assert "0 to 0.111: 2" in svg


def test_bars_are_longest_first_and_escape_their_names():
    svg = plots.bars("Drops", "note", {"few": 1, "a < b": 4})
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths == [360.0, 90.0]
    assert "a &lt; b" in svg
    many = plots.bars("Drops", "note", {f"reason {n:02d}": n for n in range(1, 21)})
    assert "13 others" in many
    assert ">91<" in many  # 1 + 2 + ... + 13
