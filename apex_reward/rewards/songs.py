"""Songs on their way to the models: files, decoded audio and tensors behind one small interface.

Shape key: C = channels, T = samples, n = samples of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, Protocol

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
from apex_reward.errors import ApexError, AudioError, UsageError
from apex_reward.files.songs_inside import NoSong
from apex_reward.model.inputs import INTEGER_LIKE_PEAK, mono_mix


class Song(Protocol):
    """A song that is heard block by block; `apex_reward.audio.decoding` makes them of files.

    Attributes:
        path: what it is called in rows.
        sample_rate: Hz; 0 where it has an `error`.
        error: why it cannot be heard, or None.
        facts: what was found while it was heard (`flags`), once all blocks are taken.
    """

    path: str
    sample_rate: int
    error: str | None

    def blocks(self) -> Iterator[Any]:
        """Mono blocks (n,) of at most five minutes; a song up to that length is one block."""
        ...

    @property
    def facts(self) -> Any:
        """What was heard, once the last block is read."""
        ...

    def close(self) -> None:
        """Let go of what is held for it."""
        ...


@dataclass(frozen=True)
class TensorFacts:
    """What is known of a song that was no file."""

    flags: list[str] = field(default_factory=list)


class TensorSong:
    """A waveform that is in memory already, on any device.

    Args:
        waveform: float (T,) or (C, T) in [-1, 1].
        sample_rate: Hz.
        path: what it is called in rows.
        flags: what is known of the file it came from.
    """

    def __init__(
        self, waveform: Tensor, sample_rate: int, path: str = "", flags: Sequence[str] = ()
    ) -> None:
        self.path, self.sample_rate = path, sample_rate
        self.error: str | None = None
        self.facts = TensorFacts(list(flags))
        self._mono = _mono(waveform)
        self.error = self._problem()

    @classmethod
    def failed(cls, reason: str, path: str = "") -> TensorSong:
        """A song that cannot be heard, with the reason."""
        song = cls(torch.zeros(1), 1, path)
        song.error = reason
        return song

    def blocks(self) -> Iterator[Tensor]:
        """The whole song as one block: it is in memory anyway."""
        yield self._mono

    def close(self) -> None:
        """Nothing is held."""

    def _problem(self) -> str | None:
        if len(self._mono) == 0:
            return "holds no audio samples"
        peak = float(self._mono.abs().max())
        if not peak < float("inf"):
            return "holds NaN or infinite samples"
        if peak > INTEGER_LIKE_PEAK:
            return (
                f"peaks at {peak:.0f}; samples should lie in [-1, 1] "
                "(divide integer samples by their full scale)"
            )
        return None


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
    if isinstance(cell, NoSong):
        return DecodedSong.failed(str(cell), cell.reason)
    if isinstance(cell, (str, PathLike)) and str(cell):
        return decode_song(fspath(cell), settings)
    if isinstance(cell, bytes):
        return song_of_bytes(cell, name, settings)
    if isinstance(cell, Mapping):
        name = str(cell.get("path") or name)
        if cell.get("array") is not None:
            cell = (cell["array"], cell.get("sampling_rate"))
        else:
            inner = cell.get("bytes") or cell.get("path")
            return _song_of(inner, sample_rate, name, settings)
    samples, rate = _samples(cell)
    if samples is None:
        return DecodedSong.failed(name, "is empty: no audio is given")
    array = np.asarray(samples)
    rate = sample_rate if rate is None else rate
    if rate is None:
        raise NoRateError(
            f"{name or 'a song'} is samples without a rate; pass sample_rate= in Hz, or give "
            "(samples, rate), a Waveform or a path"
        )
    return song_of_array(array, int(rate), name, settings)


def _samples(cell: Any) -> tuple[Any, Any]:
    """The samples of a cell, and their rate where it holds one; None where it holds no samples."""
    rate = None
    if isinstance(cell, Waveform):
        return cell.samples, cell.sample_rate
    if hasattr(cell, "get_all_samples"):
        decoded = cell.get_all_samples()
        cell, rate = decoded.data, decoded.sample_rate
    elif isinstance(cell, (tuple, list)) and [np.ndim(one) > 0 for one in cell] == [True, False]:
        cell, rate = cell
    if isinstance(cell, Tensor):
        kept = cell.detach().cpu()
        return (kept.float() if kept.is_floating_point() else kept), rate
    empty = cell is None or isinstance(cell, str) or (isinstance(cell, float) and cell != cell)
    return (None if empty else cell), rate


def as_song(item: Any, sample_rate: int | None, number: int) -> TensorSong:
    """A song of a `Waveform`, a tensor or an array; `number` names it where it has no name.

    Raises:
        UsageError: something else, no rate, integers, or another layout than (T,) or (C, T).
    """
    name = f"song {number}"
    if isinstance(item, Waveform):
        return TensorSong(torch.from_numpy(np.ascontiguousarray(item.samples)), item.sample_rate,
                          name)  # fmt: skip
    if not isinstance(item, Tensor):
        item = torch.as_tensor(np.asarray(item))
    if sample_rate is None:
        raise UsageError("songs are tensors and no rate is given; pass sample_rate= in Hz")
    return TensorSong(item, sample_rate, name)


def in_blocks(song: Song, device: torch.device) -> Iterator[Tensor]:
    """Blocks of a song as tensors on a device.

    Raises:
        AudioError: the decoder fails in the middle.
    """
    for block in song.blocks():
        yield to_device(block if isinstance(block, Tensor) else torch.from_numpy(block), device)


def with_last(blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Blocks, and whether each is the last; AudioError where there is none."""
    ahead: Tensor | None = None
    for block in blocks:
        if ahead is not None:
            yield ahead, False
        ahead = block
    if ahead is None:
        raise AudioError("holds no audio samples")
    yield ahead, True


def to_device(samples: Tensor, device: torch.device) -> Tensor:
    """Samples there; a GPU copies them while the host goes on and the encoder works."""
    if device.type != "cuda" or samples.is_cuda:
        return samples.to(device)
    return samples.pin_memory().to(device, non_blocking=True)


def gather(songs: Sequence[Any], sample_rate: int | None) -> list[Any]:
    """Paths as text, everything else as a song in memory."""
    return [
        fspath(song) if isinstance(song, (str, PathLike)) else as_song(song, sample_rate, number)
        for number, song in enumerate(songs)
    ]


def _mono(waveform: Tensor) -> Tensor:
    if waveform.ndim not in (1, 2):
        raise UsageError(
            f"a song has shape {tuple(waveform.shape)}; expected a float waveform (T,) or (C, T)"
        )
    stacked = waveform[None] if waveform.ndim == 2 else waveform[None, None]
    if stacked.shape[2] == 0:
        return waveform.new_zeros(0)
    return mono_mix(stacked)[0].detach().float()
