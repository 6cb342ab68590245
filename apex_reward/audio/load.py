"""Files to waveforms: libsndfile first, torchcodec for what it cannot read.

Shape key: C = channels, T = samples.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apex_reward.errors import AudioError

FloatArray = npt.NDArray[np.float32]
# What a folder search picks up; an explicitly named file may end in anything.
AUDIO_ENDINGS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"),
    *(".m4a", ".mp4", ".aac", ".wma", ".webm"),
)


@dataclass(frozen=True)
class Waveform:
    """Decoded audio: samples (C, T) float32, nominally in [-1, 1], and the rate in Hz.

    `promised` is T as the file's header gives it, None where it does not: a file that was cut off
    may promise more than it holds.
    """

    samples: FloatArray
    sample_rate: int
    promised: int | None = None

    @property
    def mono(self) -> FloatArray:
        """The mean over channels, (T,)."""
        return self.samples.mean(axis=0, dtype=np.float32)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.sample_rate


def load_audio(path: str | Path) -> Waveform:
    """Decode a song.

    Raises:
        AudioError: no such file, not a regular file, not readable, not audio, no samples, or
            samples that are NaN or infinite. The message is the reason, without the path.
    """
    path = Path(path)
    _check_file(path)
    try:
        waveform = _decode(path)
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror or error}") from error
    if waveform.samples.shape[1] == 0:
        raise AudioError("holds no audio samples")
    finite = np.isfinite(waveform.samples).all(axis=0)
    if not finite.all():
        first = int(np.argmin(finite)) / waveform.sample_rate
        raise AudioError(f"holds NaN or infinite samples, the first at {first:.3f} s")
    return waveform


def save_wav(path: str | Path, samples: FloatArray, sample_rate: int) -> None:
    """Write (T,) or (C, T) float samples as a 32-bit float WAV."""
    import soundfile

    soundfile.write(path, np.asarray(samples, np.float32).T, sample_rate, "FLOAT", format="WAV")


def _check_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        reason = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise AudioError(reason) from None
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise AudioError("is a folder, not a file")
    # A pipe or device would block for ever.
    if not stat.S_ISREG(mode):
        raise AudioError("is not a regular file")


def _decode(path: Path) -> Waveform:
    import soundfile

    with open(path, "rb") as file:  # the operating system's own reasons come first
        if not file.read(1):
            raise AudioError("is empty (0 bytes)")
        file.seek(0)
        try:
            with soundfile.SoundFile(file) as song:
                promised, rate = song.frames, song.samplerate
                samples = song.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).rstrip(".")
        except (RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            return Waveform(np.ascontiguousarray(samples.T), int(rate), promised)
    decoded = _decode_with_torchcodec(path)
    if decoded is None:
        raise AudioError(f"is not audio that can be decoded ({reason})")
    return decoded


def _decode_with_torchcodec(path: Path) -> Waveform | None:
    # Optional: FFmpeg reads AAC, M4A, WMA and other formats that libsndfile does not.
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    try:
        decoded = AudioDecoder(str(path)).get_all_samples()
    except (RuntimeError, ValueError):
        return None
    return Waveform(decoded.data.float().numpy(), int(decoded.sample_rate))
