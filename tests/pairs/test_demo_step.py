"""The tour's step: pairs of versions of the same song."""

from __future__ import annotations

from apex_reward.demo.step_pairs import run
from apex_reward.files.tables import read_jsonl
from tests.support import write_wav


def test_versions_of_a_song_are_paired_best_against_worst(tmp_path):
    songs, scores = [], []
    for n, value in enumerate((2.0, 4.5, 3.0, 3.5, 1.0)):
        songs.append(write_wav(tmp_path / "audio" / f"version{n}.wav", seconds=0.2, seed=n))
        row = {"path": str(songs[-1]), "prompt_id": f"song {n // 3}", "musicality": value}
        scores.append({**row, "flags": ["short"], "error": None, "severity": n})
    text = run(tmp_path, songs, scores)
    pairs = read_jsonl(tmp_path / "pairs" / "pairs.jsonl")
    assert [(pair["chosen"][-5], pair["rejected"][-5]) for pair in pairs] == [
        ("1", "0"),
        ("3", "4"),
    ]
    assert "5 versions of 2 songs -> 2 preference pairs" in text
    assert "song 0: version1.wav over version0.wav by 2.50" in text
    assert "data:audio/" in (tmp_path / "pairs" / "report.html").read_text()
