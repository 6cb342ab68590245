"""The Space folder: its page starts as it will on the hub, and answers."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from fastapi.testclient import TestClient

SPACE = Path(__file__).parent.parent.parent / "space"


def test_the_space_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REWARD", "MIX", "LOUDNESS"):
        monkeypatch.delenv(name, raising=False)
    client = TestClient(runpy.run_path(str(SPACE / "app.py"))["app"])
    assert "demonstration model" in client.get("/").text
    song = io.BytesIO()
    tone = np.sin(np.arange(16_000) * 0.1) * 0.1
    soundfile.write(song, tone, 16_000, format="WAV")
    answer = client.post("/try", files={"song": ("tone.wav", song.getvalue())})
    assert answer.status_code == 200
    assert "musicality" in answer.text


def test_its_head_names_the_port_that_the_page_is_at() -> None:
    head = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (head["sdk"], head["app_port"]) == ("docker", 7860)
    assert '"7860"' in (SPACE / "app.py").read_text()
    assert (SPACE / "requirements.txt").read_text() == "apex-reward[listen]\n"
