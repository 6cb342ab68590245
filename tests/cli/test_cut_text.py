r"""Text that UTF-8 cannot hold ends no command: a prompt cut within an emoji has `\ud83d`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apex_reward.cli import app
from tests.support import write_wav

CUT = "a cut emoji \ud83d"


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    for n in range(4):
        write_wav(tmp_path / f"{n}.wav", 0.5, seed=n)
    songs = [{"audio": f"{n}.wav", "prompt": (CUT, "b")[n // 2]} for n in range(4)]
    battle = {"preference": "A", "prompt": CUT, "audio_a": "0.wav", "audio_b": "1.wav"}
    counts = [
        {"id": f"{n} {CUT}", "path": f"{n}.wav", "plays": n + 1, "likes": n} for n in range(4)
    ]
    scored = [{**song, "group": CUT, "musicality": float(n)} for n, song in enumerate(songs)]
    return {
        "SONGS": table(tmp_path / "songs.jsonl", songs),
        "CANDIDATES": table(tmp_path / "candidates.jsonl", scored),
        "BATTLES": table(tmp_path / "battles.jsonl", [battle]),
        "COUNTS": table(tmp_path / "counts.jsonl", counts),
    }


@pytest.mark.parametrize(
    "words",
    [
        "score SONGS --model apex-tiny --workers 0",
        "score SONGS --model apex-tiny --workers 0 --output out.jsonl",
        "score SONGS --model apex-tiny --workers 0 --output out.csv",
        "score SONGS --model apex-tiny --workers 0 --output out.parquet",
        "pairs CANDIDATES --output out",
        "pairs CANDIDATES --format trl --output out",
        "arena score BATTLES --model apex-tiny --workers 0 --output out.csv",
        "prepare COUNTS --output out",
    ],
)
def test_one_cell_never_costs_a_file(
    words: str, tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [str(tables.get(word, word)) for word in words.split()])
    assert result.exception is None, result.exception
    if "--output" in words:
        assert (tmp_path / words.split()[-1]).exists()
