"""Pieces of many songs through one encoder: fed block by block, encoded in full batches, in order.

Shape key: T = samples, N = pieces, n = samples in a piece, W = embedding width.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apex_reward.audio.resample import BlockResampler
from apex_reward.model.encode import SongEncoder, encode_pieces

# Memory of a GPU for which the encoders' own batches are meant.
ROOM_BYTES = 16 * 2**30
CPU_SECONDS = 30


def batch_size(encoder: SongEncoder, device: torch.device) -> int:
    """Pieces per batch where nobody says: the encoder's own, more or fewer where that is faster.

    A GPU takes more, by the memory it has: what is free of it may be another when a run goes on,
    whose batches must be made up alike, and a batch that does not fit is halved. On a CPU more than
    half a minute at once only leaves the caches.
    """
    own = encoder.batch_segments
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return own * max(1, memory // ROOM_BYTES)
    if device.type == "cpu" and encoder.window is not None:
        return max(1, min(own, CPU_SECONDS * encoder.sample_rate // encoder.window))
    return own


@dataclass
class Heard:
    """What one encoder made of one song so far.

    Attributes:
        total: sum over pieces of mass times feature, (1, ...); None before the first.
        masses: of the pieces cut so far; their shares are the pieces' weights in the song's mean.
        real: real samples of the pieces.
        kept: the pieces' features (1, ...), where they are asked for.
        missing: pieces cut and not encoded.
    """

    total: Tensor | None = None
    masses: list[float] = field(default_factory=list)
    real: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    missing: int = 0

    @property
    def weights(self) -> list[float]:
        """Shares of the pieces in the song's mean, summing to 1."""
        whole = sum(self.masses)
        return [mass / whole for mass in self.masses]

    @property
    def mean(self) -> Tensor:
        """The song's feature (1, ...)."""
        if self.total is None:
            raise ValueError("no piece of this song was encoded")
        return self.total / sum(self.masses)


@dataclass
class _Piece:
    heard: Heard
    samples: Tensor
    real: Tensor
    mass: float


class EncoderQueue:
    """Fills encoder batches from songs in order.

    Args:
        encoder: whose batches are filled.
        device: where it and the songs are.
        size: pieces per batch; None takes `batch_size`.
        keep: keep the pieces' features too.
    """

    def __init__(
        self, encoder: SongEncoder, device: torch.device, size: int | None, keep: bool
    ) -> None:
        self.encoder, self._device, self._keep = encoder, device, keep
        # A song heard whole is a batch of its own: a neighbour's length must not change it.
        self.size = 1 if encoder.window is None else size or batch_size(encoder, device)
        self._waiting: deque[_Piece] = deque()
        self._running: tuple[list[_Piece], Tensor] | None = None

    def open(self, sample_rate: int) -> Feed:
        """A way in for a song at `sample_rate` Hz."""
        return Feed(self, sample_rate)

    def add(self, heard: Heard, song: Tensor) -> None:
        """Cut a mono stretch (T,) at the encoder's rate and let its pieces wait."""
        pieces = self.encoder.cut(song[None], [len(song)])
        for samples, real in zip(pieces.samples, pieces.real, strict=True):
            mass = float(real) if self.encoder.by_length else 1.0
            heard.masses.append(mass)
            heard.real.append(int(real))
            heard.missing += 1
            self._waiting.append(_Piece(heard, samples, real, mass))

    def drop(self, heard: Heard) -> None:
        """Forget the pieces of a song that failed."""
        self._waiting = deque(piece for piece in self._waiting if piece.heard is not heard)

    def encode(self, at_least: int | None = None) -> None:
        """Encode batches while at least that many pieces wait; None: while a batch is full."""
        least = self.size if at_least is None else at_least
        while len(self._waiting) >= least and self._waiting:
            count = min(self.size, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            samples = torch.stack([piece.samples for piece in batch])
            real = torch.stack([piece.real for piece in batch])
            with torch.no_grad():
                found = encode_pieces(self.encoder, samples, real, self.size).float()
            # A GPU is at this batch now; reading the one before does not keep it waiting.
            self._settle()
            self._running = batch, found
        if at_least is not None or self._device.type != "cuda":
            self._settle()

    def _settle(self) -> None:
        if self._running is not None:
            batch, found = self._running
            for piece, feature in zip(batch, found.cpu().split(1), strict=True):
                self._take(piece, feature)
            self._running = None

    def _take(self, piece: _Piece, feature: Tensor) -> None:
        heard, weighed = piece.heard, feature * piece.mass
        heard.total = weighed if heard.total is None else heard.total + weighed
        heard.missing -= 1
        if self._keep:
            heard.kept.append(feature)


class Feed:
    """One song on its way into one encoder's queue: resampled and cut as its blocks come."""

    def __init__(self, queue: EncoderQueue, sample_rate: int) -> None:
        self.queue, self.heard = queue, Heard()
        self._resampler = BlockResampler(sample_rate, queue.encoder.sample_rate)
        self._rest: Tensor | None = None

    def push(self, block: Tensor, last: bool) -> None:
        """Take a further block (n,) at the song's own rate."""
        song = self._resampler.push(block, last)
        if self._rest is not None:
            song = torch.cat([self._rest, song])
        if last:
            self.queue.add(self.heard, song)
            return
        window = self.queue.encoder.window
        # A whole window waits with the rest: what becomes of a short tail depends on it.
        ready = 0 if window is None else max(0, len(song) // window - 1) * window
        if ready:
            self.queue.add(self.heard, song[:ready])
        self._rest = song[ready:]
