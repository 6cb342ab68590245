"""The line at the end of a scoring run, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from apex_reward.scoring import rows
from apex_reward.scoring.rows import Tally


def test_counts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "time", SimpleNamespace(perf_counter=lambda: 110.0))
    counts = Tally(_started=100.0)
    counts.count({"path": "a.wav", "error": None, "duration": 1800.0}, fresh=False)
    assert (counts.seconds, counts.speed) == (1800.0, 0.0)
    assert str(counts).startswith("1 song, 1800.0 s")
    counts.count({"path": "b.wav", "error": "is empty (0 bytes)", "duration": None})
    assert str(counts) == "2 songs, 1 failed, 1800.0 s of audio, 0.0 x real time"
    counts.count({"path": "c.wav", "error": None, "duration": 1800.0})
    assert str(counts) == "3 songs, 1 failed, 1.00 h of audio, 180.0 x real time"
    assert counts.reasons == ["b.wav: is empty (0 bytes)"]
