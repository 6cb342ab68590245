"""Every page of the package on one small made-up set of songs, to be looked at and checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import uvicorn
from fastapi import FastAPI

from apex_reward import Reward
from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.report import evaluation_report
from apex_reward.arena.voters import voter_agreement
from apex_reward.audio import save_wav
from apex_reward.demo import damage, make_song
from apex_reward.files.tables import write_table
from apex_reward.listen.app import make_app
from apex_reward.listen.session import Session
from apex_reward.listen.sources import read_comparisons
from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.options import PairOptions
from apex_reward.pairs.report import write_report
from tests.browser import Browser

RATE, TUNES = 24_000, 4
SYSTEMS = {"Aster": None, "Borealis": "low-pass", "Cirrus": "noise"}
PAGES = ("try", "compare", "vote", "pairs", "arena")


def write_songs(folder: Path, seconds: float) -> Path:
    """A song per system and tune; two of the systems damage theirs."""
    for tune in range(TUNES):
        song = make_song(tune, seconds=seconds)
        for system, kind in SYSTEMS.items():
            made = song if kind is None else damage(song, kind, 1 + tune % 3, tune, RATE)
            (folder / system).mkdir(parents=True, exist_ok=True)
            save_wav(folder / system / f"tune {tune}.wav", made, RATE)
    return folder


def candidates_of(reward: Reward, folder: Path) -> list[dict[str, Any]]:
    """Rows of all songs with their scores, for pairs."""
    files = sorted(folder.rglob("*.wav"))
    return [
        {**row, "audio": str(path), "prompt": f"a calm piece, number {path.stem[-1]}",
         "prompt_id": path.stem, "group": path.parent.name}
        for path, row in zip(files, reward.judge(files), strict=True)
    ]  # fmt: skip


def pairs_page(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """The report of preference pairs on four axes."""
    axes = ("coherence", "clarity", "naturalness")
    options = PairOptions(axis="musicality", strategy="mrsd", axes=axes, test_share=0.3)
    write_report(build(read_candidates(rows), options), folder)
    return folder / "report.html"


def arena_page(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """The report of `arena evaluate` on votes of two voters who like what the reward likes."""
    random = np.random.default_rng(0)
    battles = []
    for number in range(60):
        a, b = random.choice(len(rows), 2, replace=False)
        lead = rows[a]["musicality"] - rows[b]["musicality"] + 0.4 * random.normal()
        battles.append({
            "battle_uuid": f"battle-{number}", "preference": "A" if lead > 0 else "B",
            "audio_a": rows[a]["audio"], "audio_b": rows[b]["audio"],
            "system_a": rows[a]["group"], "system_b": rows[b]["group"],
            "prompt": rows[a]["prompt"], "is_instrumental": number % 2 == 0,
            "voter": ("ann", "bob")[number % 2], "comparison": f"c{number // 2}",
            **{f"{head}_{side}": rows[at][head] for side, at in (("a", a), ("b", b))
               for head in ("musicality", "clarity")},
        })  # fmt: skip
    folder.mkdir(parents=True)
    write_table(folder / "battles.jsonl", battles)
    voters = voter_agreement(battles)
    metrics = {**evaluate_battles(battles_of(battles), bootstrap=100), "voters": voters}
    evaluation_report(metrics, folder, folder / "battles.jsonl")
    return folder / "report.html"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an application that a thread of this process serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Pages:
    """The pages as they are in use. Use it as a context.

    Args:
        folder: an empty one, for songs and reports.
        seconds: length of each song; of the one on Try 35 s, so that it has two segments.
    """

    def __init__(self, folder: Path, seconds: float = 2.0) -> None:
        self.reward = Reward("apex-tiny", mix="aesthetics", guards="flag")
        songs = write_songs(folder / "songs", seconds)
        self.song = folder / "A long song.wav"
        save_wav(self.song, make_song(9, seconds=35.0), RATE)
        rows = candidates_of(self.reward, songs)
        # Beside the page: the checker compares addresses, and a song as an address is long.
        with patch("apex_reward.report.songs.EMBED_BYTES", 0):
            self.reports = {
                "pairs": pairs_page(rows, folder / "pairs"),
                "arena": arena_page(rows, folder / "arena"),
            }
        comparisons = read_comparisons(songs)
        session = Session(comparisons, folder / "votes.jsonl", min_seconds=0.5)
        self._apps = {
            "vote": make_app(session, reward=self.reward),
            "compare": make_app(reward=self.reward, comparisons=comparisons),
        }
        self._stack = ExitStack()

    def __enter__(self) -> Pages:
        self.address = {
            name: self._stack.enter_context(serving(app)) for name, app in self._apps.items()
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, browser: Browser, name: str) -> None:
        """Open one of `PAGES` and bring it to where there is something to see."""
        if name in self.reports:
            browser.open(self.reports[name].as_uri())
        elif name == "try":
            browser.open(self.address["vote"] + "/try")
            browser.upload("#files", self.song)
            browser.run("document.querySelector('#given button').click()")
            browser.until("part('status').textContent == 'Scored.'", 60)
            browser.run("document.querySelector('button.gradient').click()")
            browser.until("document.querySelectorAll('.strong rect').length == 300", 60)
        elif name == "compare":
            browser.open(self.address["compare"] + "/compare")
            browser.until("part('status').textContent == 'Ready.'", 60)
        else:
            browser.open(self.address["vote"] + "/")
            browser.run(
                "part('voter').value = 'ann', document.querySelector('#who button').click()"
            )
            browser.until("question")
