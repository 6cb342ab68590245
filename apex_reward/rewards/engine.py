"""Songs through the encoder: decode ahead, pack segments of many songs into batches, in order.

Shape key: T = samples, S = segments of a song, N = segments of many songs, n = samples in a
segment, L = kept layers (4), W = embedding width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from apex_reward.audio.decoding.decode import DecodedSong, DecodeSettings
from apex_reward.audio.decoding.pool import decode_songs
from apex_reward.errors import AudioError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from apex_reward.audio.segment import Segments
    from apex_reward.model import ApexReward

BLOCK_SONGS = 16


@dataclass(frozen=True)
class SongResult:
    """What the encoder made of one song, or why it made nothing.

    Attributes:
        index: position in the sources.
        path: the source as given.
        duration: seconds of audio; None where there is an `error`.
        sample_rate: of the file in Hz; None where there is an `error`.
        layers: (S, L, W) float32 layer embeddings on the CPU; None where there is an `error`.
        segment_seconds: S lengths of the real audio in each segment, without padding.
        weights: S shares of the segments in the song's mean, summing to 1.
        flags: as in `apex_reward.audio.decoding.flags.song_flags`.
        error: the reason, or None.
    """

    index: int
    path: str
    duration: float | None = None
    sample_rate: int | None = None
    layers: Tensor | None = None
    segment_seconds: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    error: str | None = None


def run_songs(
    model: ApexReward,
    sources: Sequence[str],
    *,
    batch_segments: int | None = None,
    workers: int = 0,
    block: int = BLOCK_SONGS,
) -> Iterator[SongResult]:
    """Encode songs, one SongResult per source, in their order, each as soon as it is ready.

    Segments of many songs share encoder batches. Batches never reach over a block of songs, so
    they are made up alike whatever the workers' timing, and a run that starts anew at a multiple
    of `block` gives the same numbers to the last bit (at a fixed thread count).

    Args:
        model: on any device and dtype; resampling happens there too.
        sources: paths of audio files.
        batch_segments: segments per encoder batch; None takes the model's configuration. Halved
            for a batch that does not fit the GPU.
        workers: decoding processes; 0 decodes in this one.
        block: songs per block.

    Raises:
        UsageError: a batch, block or worker count out of range.
    """
    size = model.config.batch_segments if batch_segments is None else batch_segments
    if size < 1 or block < 1 or workers < 0:
        raise UsageError(
            f"batch_segments is {size}, block {block}, workers {workers}; "
            "expected at least 1, 1 and 0"
        )
    settings = DecodeSettings(model.config.segment_seconds, model.config.sample_rate)
    packer = _Packer(model, size)
    songs = decode_songs(sources, settings, workers)
    for index, (path, decoded) in enumerate(zip(sources, songs, strict=True)):
        packer.add(_OpenSong.begin(model, index, path, decoded))
        packer.encode(at_least=size)
        if (index + 1) % block == 0:
            packer.encode(at_least=1)
        yield from packer.finished()
    packer.encode(at_least=1)
    yield from packer.finished()


@dataclass
class _OpenSong:
    """A song on its way: its segments (S, n) wait, its layer embeddings come in parts."""

    result: SongResult
    segments: Segments | None = None
    parts: list[Tensor] = field(default_factory=list)

    @classmethod
    def begin(cls, model: ApexReward, index: int, path: str, decoded: DecodedSong) -> _OpenSong:
        if decoded.error is not None:
            return cls(SongResult(index, path, error=decoded.error))
        try:
            segments = _segments_of(model, decoded)
        except AudioError as error:
            return cls(SongResult(index, path, error=str(error)))
        rate = model.config.sample_rate
        result = SongResult(
            index,
            path,
            duration=decoded.mono.size / decoded.sample_rate,
            sample_rate=decoded.sample_rate,
            segment_seconds=[n / rate for n in segments.real.tolist()],
            weights=segments.weight.tolist(),
            flags=decoded.flags,
        )
        return cls(result, segments)

    @property
    def missing(self) -> int:
        """Segments that are not encoded yet."""
        return len(self.result.weights) - sum(len(part) for part in self.parts)

    def close(self) -> SongResult:
        """The result with its layer embeddings, once none is missing."""
        import torch

        if self.segments is None:
            return self.result
        layers = torch.cat(self.parts)
        if not torch.isfinite(layers).all():
            return SongResult(
                self.result.index,
                self.result.path,
                error="the encoder's output is not finite; samples may lie far outside [-1, 1]",
            )
        return replace(self.result, layers=layers)


class _Packer:
    """Fills encoder batches of `size` segments from songs in order."""

    def __init__(self, model: ApexReward, size: int) -> None:
        self._model = model
        self._size = size
        self._songs: deque[_OpenSong] = deque()
        self._waiting: deque[tuple[_OpenSong, Tensor, Tensor]] = deque()

    def add(self, song: _OpenSong) -> None:
        self._songs.append(song)
        if song.segments is not None:
            for samples, real in zip(song.segments.samples, song.segments.real, strict=True):
                self._waiting.append((song, samples, real))

    def encode(self, at_least: int) -> None:
        """Encode batches while at least that many segments wait."""
        import torch

        device = self._model.device
        while len(self._waiting) >= at_least:
            count = min(self._size, len(self._waiting))
            songs, samples, real = zip(
                *(self._waiting.popleft() for _ in range(count)), strict=True
            )
            # A song that was too long for the GPU has its segments on the CPU.
            batch = torch.stack([part.to(device) for part in samples])
            lengths = torch.stack([length.to(device) for length in real])
            with torch.no_grad():
                layers = self._model.encode_segments(batch, lengths, self._size)
            for song, part in zip(songs, layers.float().cpu().split(1), strict=True):
                song.parts.append(part)

    def finished(self) -> Iterator[SongResult]:
        """Songs at the front that are complete."""
        while self._songs and self._songs[0].missing == 0:
            yield self._songs.popleft().close()


def _segments_of(model: ApexReward, decoded: DecodedSong) -> Segments:
    """Resample and cut on the model's device, or on the CPU where that does not fit."""
    import torch

    try:
        return _cut(model, decoded, model.device)
    except torch.OutOfMemoryError:
        # Hours of audio: only the encoder batches need to be on the GPU.
        pass
    torch.cuda.empty_cache()
    return _cut(model, decoded, torch.device("cpu"))


def _cut(model: ApexReward, decoded: DecodedSong, device: torch.device) -> Segments:
    import torch

    from apex_reward.audio.segment import cut_segments
    from apex_reward.model.inputs import prepare_waveforms

    config = model.config
    with torch.no_grad():
        waveform = torch.from_numpy(decoded.mono)[None].to(device)
        song, ends = prepare_waveforms(waveform, decoded.sample_rate, None, config.sample_rate)
        return cut_segments(
            song, ends, config.segment_samples, config.sample_rate, config.segment_tail
        )
