"""What a stack may hand over as a song, and prompts as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.stacks.songs import prompt_texts, song_of
from tests.support import write_wav

RATE = 8_000


def heard(item: Any) -> tuple[list[float], int]:
    song = song_of(item, RATE)
    assert song is not None
    (block,) = song.blocks()
    return block.tolist(), song.sample_rate


def test_forms_of_one_song() -> None:
    """Channels 0.5, 0 and 0, 0.5 are 0.25, 0.25 in the mean."""
    two = np.array([[0.5, 0.0], [0.0, 0.5]], np.float32)
    mono = ([0.25, 0.25], RATE)
    assert heard(two) == heard(torch.from_numpy(two)) == heard(torch.full((2,), 0.25)) == mono
    assert heard([[0.5, 0.0], [0.0, 0.5]]) == mono
    assert heard((two, 100)) == heard({"array": two, "sampling_rate": 100}) == (mono[0], 100)
    assert heard({"array": two, "sampling_rate": None}) == mono


def test_files_by_path_and_by_content(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "s.wav", 0.1, 16_000, channels=2)
    expected = (pytest.approx(load_audio(file).mono.tolist(), abs=1e-6), 16_000)
    for item in (
        file, str(file), load_audio(file), {"bytes": None, "path": str(file)},
        {"bytes": file.read_bytes(), "path": "elsewhere.wav"},
    ):  # fmt: skip
        assert heard(item) == expected


@pytest.mark.parametrize(
    "item",
    [
        None, {}, {"bytes": None, "path": None}, {"bytes": b"no audio"}, "not/there.wav",
        torch.zeros(0), torch.tensor([0.0, torch.nan]), torch.full((4,), 20_000.0),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_heard_is_none(item: Any) -> None:
    assert song_of(item, RATE) is None


def test_what_is_no_waveform_is_wrong_usage() -> None:
    for item in (torch.zeros(4, dtype=torch.int16), torch.zeros(1, 1, 4), np.zeros(4, np.int32)):
        with pytest.raises(UsageError, match="expected a float waveform"):
            song_of(item, RATE)


def test_prompts_are_what_the_user_said_last() -> None:
    def said(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    parts = [{"type": "text", "text": "one"}, {"type": "audio"}, {"type": "text", "text": "two"}]
    prompts = [
        "plain",
        [said("user", "first"), said("user", "last"), said("assistant", "la")],
        [said("system", "only")],
        [said("user", parts)],
        ["a", "b"],
        [],
        {"style": "jazz"},
    ]
    assert prompt_texts(prompts) == [
        "plain", "last", "only", "one\ntwo", "b", "", '{"style": "jazz"}',
    ]  # fmt: skip
