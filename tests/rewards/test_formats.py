"""The score of a file is the score of the samples that FFmpeg alone decodes from it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from tests.audio.ffmpeg_files import KINDS, Kind, encoded, whole_decode

# The largest difference of any aesthetic head, in [1, 5], and what the codec alone may change.
BOUND = 1e-3
FORMATS = {
    "song.wav": (Kind("wav", "pcm_s16le"), 1e-4),
    "song.flac": (Kind("flac", "flac"), 1e-4),
    "song.mp3": (Kind("mp3", "libmp3lame", options={"b": "128k"}), 0.05),
    "song.ogg": (Kind("ogg", "vorbis"), 0.05),
    "song.opus": (KINDS["opus.opus"], 0.05),
    "song.m4a": (KINDS["a.m4a"], 0.05),
    "song.webm": (KINDS["opus.webm"], 0.05),
    "song.mka": (KINDS["pcm.mka"], 1e-4),
}


@lru_cache
def excerpt(path: Path, rate: int) -> np.ndarray:
    played = load_audio(path)
    part = torch.from_numpy(played.samples[:, 40 * played.sample_rate : 52 * played.sample_rate])
    return resample(part, played.sample_rate, rate).T.contiguous().numpy()


@lru_cache
def reward() -> Reward:
    return Reward("apex-tiny", mix="aesthetics", loudness=-18.0)


def heads(song: object) -> np.ndarray:
    (row,) = reward().judge([song])
    return np.array([row[head.name] for head in reward().heads if head.high == 5])


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_scores_what_its_samples_score(
    name: str, tmp_path: Path, shared_folder: Path
) -> None:
    kind, codec = FORMATS[name]
    samples = excerpt(shared_folder / "audio" / "songeval_example.mp3", kind.rate)
    data = encoded(samples, kind)
    (tmp_path / name).write_bytes(data)
    found = heads(tmp_path / name)
    by_ffmpeg = heads((torch.from_numpy(whole_decode(data)), kind.rate))
    assert np.abs(found - by_ffmpeg).max() < BOUND
    assert np.abs(found - heads((torch.from_numpy(samples.T.copy()), kind.rate))).max() < codec
