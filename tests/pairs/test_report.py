"""The report in a real browser: no console errors, players load, headings sort, pages turn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest

from apex_reward.audio import save_wav
from apex_reward.pairs.build import build
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.reading import read_candidates
from apex_reward.pairs.report import write_report

# Runs in a copy of the page: works its controls, loads each player, writes what it saw.
PROBE = """
<script>
(async () => {
  const part = id => document.getElementById(id);
  const margins = () => [...document.querySelectorAll("h3 small")].map(
    small => Number(small.textContent.match(/margin (-?[0-9.]+)/)[1]));
  const set = (id, value, event) => {
    part(id).value = value;
    part(id).dispatchEvent(new Event(event));
  };
  const prompts = () => [...document.querySelectorAll(".prompt")].map(node => node.textContent);
  const shown = () => part("status").textContent;
  const seen = { first: margins() };
  if (seen.first.length) {
    part("order").focus();
    part("order").click();
    seen.turned = margins();
    seen.focus = document.activeElement.id;
    part("order").click();
    set("column", 1, "change");
    seen.prompts = prompts();
    set("column", 0, "change");
    part("next").focus();
    part("next").click();
    seen.second = margins();
    seen.focusOnNext = document.activeElement.id;
    seen.atEnd = part("next").getAttribute("aria-disabled");
    seen.pages = `${part("page").value} ${part("pages").textContent}`;
    set("page", "", "change");
    seen.noPage = part("page").value;
    set("page", "999", "change");
    seen.farPage = part("page").value;
    set("search", "0003 SONG", "input");
    seen.found = [shown(), ...prompts()];
    set("search", "nothing at all like it", "input");
    seen.none = [shown(), part("list").children.length];
    set("search", "", "input");
    seen.filters = [...part("shown").options].map(option => option.textContent);
    seen.filtered = seen.filters.map((_, index) => {
      set("shown", index, "change");
      return shown();
    });
    set("shown", 0, "change");
    set("page", "2", "change");
  }
  const players = [...document.querySelectorAll("audio")];
  seen.names = players.map(player => player.getAttribute("aria-label"));
  const text = document.querySelector("main").textContent;
  seen.missing = text.split("not there when this page").length - 1;
  seen.lengths = await Promise.all(players.map(
    player => new Promise(resolve => {
      player.onloadedmetadata = () => resolve(player.duration);
      player.onerror = () => resolve(player.error.message);
      player.preload = "auto";
      player.load();
    })));
  if (players.length > 1) {
    const paused = new Promise(resolve => { players[0].onpause = () => resolve(true); });
    await players[0].play();
    await players[1].play();
    seen.onePlayer = await paused && !players[1].paused;
  }
  const box = document.createElement("pre");
  box.id = "seen";
  box.textContent = JSON.stringify(seen);
  document.body.append(box);
})();
</script>
"""

# The width that anything of the page takes, and the narrowest player.
MEASURE = """
<script>
const boxesOf = names => [...document.querySelectorAll(names)].map(
  node => node.getBoundingClientRect());
const boxes = boxesOf("main *:not(svg *)");
const box = document.createElement("pre");
box.id = "seen";
box.textContent = JSON.stringify({
  window: innerWidth,
  right: Math.max(...boxes.map(box => box.right)),
  left: Math.min(...boxes.map(box => box.left)),
  player: Math.min(...boxesOf("audio").map(box => box.width)),
  plots: document.querySelectorAll("figure svg").length,
});
document.body.append(box);
</script>
"""


def opened(page: Path, probe: str = PROBE, width: int = 1280) -> dict:
    """What the probe saw in headless Chromium; fails on any message in the console."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "the report is tested in Chromium: install the package 'chromium'"
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--autoplay-policy=no-user-gesture-required",
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
        monkeypatch.setattr("apex_reward.report.songs.EMBED_BYTES", 1000)
    page = report_of(tmp_path, 40, seconds=2.0, test_share=0.25, seed=1)
    text = page.read_text(encoding="utf-8")
    assert ("data:audio/" in text) is embedded
    assert ("report_files/" in text) is not embedded
    assert "../" not in text
    assert not re.search(r"(?<!\\w)https?://(?!www.w3.org)", text)  # nothing is fetched
    shutil.rmtree(tmp_path / "songs")  # the folder opens anywhere
    moved = page.parent.rename(tmp_path / "moved")
    seen = opened(moved / "report.html")
    smallest, largest = seen["first"], seen["turned"]
    assert len(smallest) == 25
    assert smallest == sorted(smallest)
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > smallest[-1]
    assert (seen["focus"], seen["focusOnNext"], seen["atEnd"]) == ("order", "next", "true")
    assert seen["prompts"] == [f"<b>song</b> & </script> {n:04d}" for n in range(25)]
    both_pages = [*smallest, *seen["second"]]
    assert len(both_pages) == 40
    assert both_pages == sorted(both_pages)
    assert (seen["pages"], seen["noPage"], seen["farPage"]) == ("2 of 2", "1", "2")
    assert seen["found"] == ["1 pair", "<b>song</b> & </script> 0003"]
    assert seen["none"] == ["0 pairs", 0]
    assert seen["filters"] == [
        "all pairs", "split train", "split test", "rejected ahead on musicality",
    ]  # fmt: skip
    assert seen["filtered"] == ["40 pairs", "30 pairs", "10 pairs", "0 pairs"]
    # 15 pairs on the second page, each player knows the length of its song.
    assert seen["lengths"] == pytest.approx([2.0] * 30, abs=0.01)
    assert len(set(seen["names"])) == 30
    assert seen["names"][0].startswith("chosen song of pair 26: songs/")
    assert seen["onePlayer"] is True


def test_one_pair(tmp_path):
    seen = opened(report_of(tmp_path, 1, seconds=1.0))
    assert (len(seen["first"]), seen["pages"], seen["filtered"]) == (
        1,
        "1 of 1",
        ["1 pair", "0 pairs"],
    )
    assert seen["lengths"] == pytest.approx([1.0, 1.0], abs=0.01)


def test_no_pair(tmp_path):
    page = report_of(tmp_path, 3, seconds=None, chosen_floor=6.0)
    assert opened(page) == {"first": [], "names": [], "missing": 0, "lengths": []}
    text = page.read_text(encoding="utf-8")
    assert "chosen below the floor 6" in text
    assert "<b>0</b><span>pairs</span>" in text
    assert "No pair was made." in text


def test_more_pairs_than_are_listed(tmp_path):
    page = report_of(tmp_path, 5200, seconds=None)
    assert page.stat().st_size < 3_000_000
    seen = opened(page)
    assert (seen["pages"], seen["farPage"]) == ("2 of 200", "200")
    assert seen["missing"] == 50
    assert "5,000 of 5,200 pairs, smallest margins first" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [500, 1280])
def test_players_and_plots_are_whole_with_four_axes(width, tmp_path):
    page = four_axes(tmp_path)
    # Chromium's own window is 500 px at least; a frame is as narrow as a phone.
    if width == 500:
        frame = page.with_name("framed.html")
        frame.write_text(page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"))
        seen = opened(frame_of(frame, 390), FRAMED)
        assert seen["window"] == 390
    else:
        seen = opened(page, MEASURE)
        assert seen["window"] == 1280
    assert seen["right"] <= seen["window"]
    assert seen["left"] >= 0
    assert seen["player"] >= 210
    assert seen["plots"] == 9


FRAMED = """
<script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentDocument.getElementById("seen");
  document.body.append(document.importNode(inner, true));
});
</script>
"""


def frame_of(page: Path, width: int) -> Path:
    outer = page.with_name("outer.html")
    source = escape(page.read_text(encoding="utf-8"))
    style = f"width:{width}px;height:900px;border:0"
    outer.write_text(
        '<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>frame</title><body>'
        f'<iframe style="{style}" srcdoc="{source}"></iframe></body></html>',
        encoding="utf-8",
    )
    return outer


def four_axes(folder: Path) -> Path:
    """A report with four axes, long names, groups and songs."""
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
    write_report(result, folder / "out", folder, ("svg", "pdf"))
    assert sorted(path.name for path in (folder / "out" / "figures").glob("*.pdf")) == [
        f"{name}.pdf"
        for name in (
            "axis-1", "axis-2", "axis-3", "dropped-candidates", "dropped-pairs", "duration",
            "group", "loudness", "margin",
        )
    ]  # fmt: skip
    return folder / "out" / "report.html"
