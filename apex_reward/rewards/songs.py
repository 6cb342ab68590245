"""One reader of audio cells: paths, bytes, samples and decoders become songs.

Shape key: C = channels, T = samples, n = samples of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex_reward.audio.decoding import (
    PLAIN,
    DecodedSong,
    DecodeSettings,
    decode_song,
    song_of_bytes,
)
from apex_reward.audio.decoding import song_of as song_of_array
from apex_reward.audio.load import Waveform
from apex_reward.errors import ApexError, UsageError
from apex_reward.files.songs_inside import NoSong


def song_of(
    cell: Any,
    sample_rate: int | None = None,
    name: str = "",
    settings: DecodeSettings = PLAIN,
) -> DecodedSong:
    """The song of one cell, whatever its form; a cell without one is a song with an `error`.

    Args:
        cell: a path; bytes of an audio file; a mapping with `array` and `sampling_rate`, `bytes`
            or `path` (an Audio column of `datasets`); a decoder of such a column; a float tensor or
            array (T,) or (C, T) in [-1, 1]; a pair (samples, rate); a `Waveform`; or None.
        sample_rate: Hz of samples that come without a rate.
        name: what rows call a song that has no path.
        settings: what its flags are measured against.

    Raises:
        UsageError: samples without a rate. Everything else is the song's own `error`.
    """
    try:
        return _song_of(cell, sample_rate, name, settings)
    except NoRateError:
        raise
    except Exception as error:
        reason = f"cannot be read: {type(error).__name__}: {error}"
        return DecodedSong.failed(name, str(error) if isinstance(error, ApexError) else reason)


class NoRateError(UsageError):
    """Samples came without a rate, and no rate is given for them."""


def _song_of(
    cell: Any, sample_rate: int | None, name: str, settings: DecodeSettings
) -> DecodedSong:
    if isinstance(cell, DecodedSong):
        return cell
    if isinstance(cell, NoSong):
        return DecodedSong.failed(str(cell), cell.reason)
    if is_path(cell):
        return decode_song(fspath(cell), settings)
    if isinstance(cell, bytes):
        return song_of_bytes(cell, name, settings)
    # A decoder of `datasets` with its bytes or a local file is read here: a song of several
    # channels becomes their mean, while FFmpeg's own mix to one channel is 3 dB louder.
    encoded = getattr(cell, "_hf_encoded", None)
    if isinstance(encoded, Mapping) and (
        encoded.get("bytes") or (encoded.get("path") and Path(encoded["path"]).is_file())
    ):
        cell = dict(encoded)
    if isinstance(cell, Mapping):
        name = str(cell.get("path") or name)
        if cell.get("array") is None:
            inner = cell.get("bytes") or cell.get("path")
            return _song_of(inner, sample_rate, name, settings)
        cell = (cell["array"], cell.get("sampling_rate"))
    samples, rate = _samples(cell)
    if samples is None:
        return DecodedSong.failed(name, "is empty: no audio is given")
    rate = sample_rate if rate is None else rate
    if rate is None:
        raise NoRateError(
            f"{name or 'a song'} is samples without a rate; pass sample_rate= in Hz, or give "
            "(samples, rate), a Waveform or a path"
        )
    return song_of_array(np.asarray(samples), int(rate), name, settings)


def _samples(cell: Any) -> tuple[Any, Any]:
    """The samples of a cell, and their rate where it holds one; None where it holds no samples."""
    rate = None
    if isinstance(cell, Waveform):
        return cell.samples, cell.sample_rate
    if hasattr(cell, "get_all_samples"):
        decoded = cell.get_all_samples()
        cell, rate = decoded.data, decoded.sample_rate
    elif _is_pair(cell):
        cell, rate = cell
    if isinstance(cell, Tensor):
        kept = cell.detach().cpu()
        return (kept.float() if kept.is_floating_point() else kept), rate
    empty = cell is None or isinstance(cell, str) or (isinstance(cell, float) and cell != cell)
    return (None if empty else cell), rate


def _is_pair(cell: Any) -> bool:
    """Whether a cell is samples and their rate."""
    if not isinstance(cell, (tuple, list)) or len(cell) != 2:
        return False
    samples, rate = cell
    number = rate is None or isinstance(rate, Real) or getattr(rate, "ndim", None) == 0
    return number and np.ndim(samples) > 0


def cells_of(songs: Any) -> list[Any]:
    """The cells of several songs; one song is a list of one.

    A path, a mapping, a `Waveform`, a decoder, a pair (samples, rate) and samples (T,) are one
    song; a tensor (B, T) holds B songs.
    """
    one = (str, PathLike, bytes, Mapping, Waveform)
    if isinstance(songs, one) or hasattr(songs, "get_all_samples") or _is_pair(songs):
        return [songs]
    if isinstance(songs, (Tensor, np.ndarray)) and songs.ndim == 1:
        return [songs]
    return list(songs)


def is_path(cell: Any) -> bool:
    """Whether a cell is the path of a file, which may be decoded in another process."""
    named = isinstance(cell, (str, PathLike)) and not isinstance(cell, NoSong)
    return named and bool(str(cell))


def in_blocks(song: DecodedSong, device: torch.device, channels: bool = False) -> Iterator[Tensor]:
    """Mono blocks (n,) of a song as tensors on a device; (C, n) with `channels`.

    Raises:
        AudioError: the decoder fails in the middle.
    """
    for block in song.channel_blocks() if channels else song.blocks():
        yield to_device(torch.from_numpy(block), device)


def to_device(samples: Tensor, device: torch.device) -> Tensor:
    """Samples on a device; the host goes on while a GPU copies them."""
    if device.type != "cuda" or samples.is_cuda:
        return samples.to(device)
    return samples.pin_memory().to(device, non_blocking=True)
