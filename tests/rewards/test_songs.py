"""Audio cells: every form of one song, and the reason where there is none."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.files.songs_inside import NoSong
from apex_reward.rewards.songs import song_of
from tests.support import write_wav

TWO = np.array([[0.5, 0.0], [0.0, 0.5]], np.float32)


def decoded(cell: Any, rate: int | None = None) -> tuple[list[float], int]:
    song = song_of(cell, rate)
    assert song.error is None, song.error
    return song.mono.tolist(), song.sample_rate


@pytest.mark.parametrize(
    "cell",
    [
        (TWO, 8_000), [TWO, np.int64(8_000)], (TWO, np.float64(8_000.0)),
        (torch.from_numpy(TWO), torch.tensor(8_000)), (TWO.astype(np.float64), 8_000),
        (torch.from_numpy(TWO).to(torch.bfloat16), 8_000),
        (TWO.tolist(), 8_000), {"array": TWO, "sampling_rate": 8_000},
        SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(TWO), sample_rate=8_000)
        ),
    ],
)  # fmt: skip
def test_every_form_of_samples_with_a_rate(cell: Any) -> None:
    """Channels 0.5, 0 and 0, 0.5 are 0.25, 0.25 in the mean; the own rate wins."""
    assert decoded(cell) == decoded(cell, 4_000) == ([0.25, 0.25], 8_000)


def test_a_decoder_object_of_a_column_with_one_channel_is_the_mean(tmp_path: Path) -> None:
    """FFmpeg's own mix of two channels to one is 0.707 of their sum, 3 dB above the mean."""
    file = write_wav(tmp_path / "s.wav", 0.1, 16_000, channels=2)
    mean = load_audio(file).mono.tolist()
    mixed = torch.tensor(mean)[None] * 2**0.5
    for encoded in ({"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}):
        cell = SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(data=mixed, sample_rate=16_000),
            _hf_encoded=encoded,
        )
        assert decoded(cell) == (pytest.approx(mean, abs=1e-6), 16_000)


@pytest.mark.parametrize("cell", [TWO, torch.from_numpy(TWO), TWO.tolist(),
                                  {"array": TWO, "sampling_rate": None}])  # fmt: skip
def test_samples_without_a_rate_are_wrong_usage(cell: Any) -> None:
    assert decoded(cell, 4_000) == ([0.25, 0.25], 4_000)
    with pytest.raises(UsageError, match="song 3 is samples without a rate; pass sample_rate= in"):
        song_of(cell, None, "song 3")


def test_files_by_path_and_by_content(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "s.wav", 0.1, 16_000, channels=2)
    expected = (pytest.approx(load_audio(file).mono.tolist(), abs=1e-6), 16_000)
    content = file.read_bytes()
    for cell in (
        file, str(file), load_audio(file), content, {"bytes": None, "path": str(file)},
        {"bytes": content, "path": "elsewhere.wav"},
    ):  # fmt: skip
        assert decoded(cell) == expected
    assert song_of({"bytes": content, "path": "elsewhere.wav"}).path == "elsewhere.wav"
    assert song_of(content, name="song 1").path == "song 1"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "is empty: no audio is given"),
        (math.nan, "is empty: no audio is given"),
        ("", "is empty: no audio is given"),
        ({}, "is empty: no audio is given"),
        ({"bytes": None, "path": None}, "is empty: no audio is given"),
        ({"bytes": b"no audio"}, "is not audio that can be decoded"),
        (b"", "is empty (0 bytes)"),
        ("not/there.wav", "does not exist"),
        (NoSong("a.wav", "needs a login"), "needs a login"),
        (torch.zeros(0), "holds no audio samples"),
        (torch.tensor([0.0, torch.nan]), "holds NaN or infinite samples, the first at 0.000 s"),
        (torch.full((4,), 20_000.0), "peaks at 20000"),
        (torch.zeros(4, dtype=torch.int16), "samples are int16; expected floats in"),
        (torch.zeros(1, 1, 4), "samples have shape"),
        (torch.zeros(9_000, 2), "did you pass"),
        (object(), "samples are object"),
        ((TWO, -1), "sample_rate is -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_cell_without_a_song_says_why(cell: Any, reason: str) -> None:
    error = song_of(cell, 8_000).error
    assert error is not None
    assert reason in error
