"""Files to waveforms: whole songs in memory. For songs of hours see `audio.decoding`.

Shape key: C = channels, T = samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from apex_reward.audio.flags import check_finite
from apex_reward.audio.stream import stream_file
from apex_reward.errors import AudioError

FloatArray = npt.NDArray[np.float32]
# What a folder search picks up; an explicitly named file may end in anything.
AUDIO_ENDINGS = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".spx"),
    *(".mp3", ".mp2", ".mpga", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc"),
    *(".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".mka"),
)


def songs_by_stem(folder: Path) -> dict[str, Path]:
    """The audio files in a folder and below, by name without ending; the first of equal names."""
    files = sorted(folder.rglob("*"), reverse=True)
    return {path.stem: path for path in files if path.suffix.lower() in AUDIO_ENDINGS}


@dataclass(frozen=True)
class Waveform:
    """Decoded audio: samples (C, T) float32, nominally in [-1, 1], and the rate in Hz."""

    samples: FloatArray
    sample_rate: int

    @property
    def mono(self) -> FloatArray:
        """The mean over channels, (T,)."""
        return self.samples.mean(axis=0, dtype=np.float32)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.sample_rate


def load_audio(path: str | Path) -> Waveform:
    """Decode a song, to its end whatever its header says.

    Raises:
        AudioError: no such file, not a regular file, not readable, not audio, damaged, no samples,
            or samples that are NaN or infinite. The message is the reason, without the path.
    """
    chunks, done = [], 0
    with stream_file(path) as stream:
        for chunk in stream.chunks:
            check_finite(chunk, done, stream.sample_rate)
            done += len(chunk)
            chunks.append(np.array(chunk.T, order="C"))
    if done == 0:
        raise AudioError("holds no audio samples")
    return Waveform(np.concatenate(chunks, axis=1), stream.sample_rate)


def save_wav(path: str | Path, samples: FloatArray, sample_rate: int) -> None:
    """Write (T,) or (C, T) float samples as a 32-bit float WAV."""
    soundfile.write(path, np.asarray(samples, np.float32).T, sample_rate, "FLOAT", format="WAV")
