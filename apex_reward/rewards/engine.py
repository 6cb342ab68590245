"""Songs to features to scores, block by block, with pieces of many songs in each encoder batch.

The path of a song is `_Engine.take`: loudness, guards, the queue of every encoder, the models that
take waveforms; `_Engine.finished` scores it. Songs come out in the order in which they went in. An
exception while a song is read, encoded or scored is that song's error; a batch that fails is
encoded again piece by piece.

Shape key: T = samples, n = samples of a block, N = pieces, S = pieces of a song, W = width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from apex_reward.audio.decoding import DecodedSong
from apex_reward.audio.loudness import integrated_loudness, loudness_of_blocks
from apex_reward.audio.resample import BlockResampler
from apex_reward.errors import ApexError, AudioError, UsageError
from apex_reward.model.encode import SongEncoder, encode_pieces
from apex_reward.prompt import Prompt
from apex_reward.rewards.guards import UNFAMILIAR, Guards
from apex_reward.rewards.members import Members
from apex_reward.rewards.songs import in_blocks
from apex_reward.scores.scores import Scores

BLOCK_SONGS = 16
# Memory of a GPU for which the encoders' own batches are meant.
ROOM_BYTES = 16 * 2**30
CPU_SECONDS = 30
NOT_FINITE = "the encoder's output is not finite; samples may lie far outside [-1, 1]"


@dataclass(frozen=True)
class EngineSettings:
    """How songs are encoded and scored.

    Args:
        loudness: LUFS that every song's mono mix is brought to; None leaves it.
        guards: measured on the decoded song, before any gain.
        batch_segments: pieces per encoder batch; None takes `batch_size`.
        block: songs after which every batch is encoded, full or not: batches hold the same songs
            whatever the timing, and a run that starts at a multiple of it gives the same bits.
        pieces: keep the features of the first encoder's pieces.
        scored: score the features too.

    Raises:
        UsageError: a batch or block below 1.
    """

    loudness: float | None = None
    guards: Guards = field(default_factory=lambda: Guards(()))
    batch_segments: int | None = None
    block: int = BLOCK_SONGS
    pieces: bool = False
    scored: bool = True

    def __post_init__(self) -> None:
        if (self.batch_segments is not None and self.batch_segments < 1) or self.block < 1:
            raise UsageError(
                f"batch_segments is {self.batch_segments} and block {self.block}; "
                "expected at least 1"
            )


@dataclass(frozen=True)
class SongResult:
    """Features and scores of one song, or the reason why there are none.

    Attributes:
        index: position among the songs.
        path: the song's name in rows.
        prompt: its prompt, where there is one.
        duration: seconds of audio; None where there is an `error`.
        sample_rate: of the song in Hz; None where there is an `error`.
        features: (1, ...) float32 song means on the CPU, one per encoder.
        scores: (1,) of all models, on the CPU; None where there is an `error`.
        weights: shares of the first encoder's S pieces in the song's mean, summing to 1.
        seconds: real audio in each of those pieces, without padding.
        pieces: (S, ...) their features, where asked for.
        measured: the guards' values by name, and `unfamiliar` where a model measures it.
        flags: of the song, as in `apex_reward.audio.flags`.
        error: the reason, or None.
    """

    index: int
    path: str
    prompt: Prompt | None = None
    duration: float | None = None
    sample_rate: int | None = None
    features: tuple[Tensor, ...] = ()
    scores: Scores | None = None
    weights: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pieces: Tensor | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    error: str | None = None

    def failed(self, reason: str) -> SongResult:
        """The same song with a reason instead of features and scores."""
        return SongResult(self.index, self.path, self.prompt, error=reason)


def run_songs(
    members: Members,
    songs: Iterable[DecodedSong],
    settings: EngineSettings | None = None,
    prompts: Iterable[Prompt] | None = None,
) -> Iterator[SongResult]:
    """One SongResult per song, in order, each as soon as it is ready.

    Args:
        members: the models, on any device and dtype; resampling runs there too.
        songs: as `decode_songs` and `song_of` give them.
        prompts: one per song, for models that read them.
    """
    settings = settings or EngineSettings()
    engine = _Engine(members, settings)
    texts = iter(prompts) if prompts is not None else None
    for index, song in enumerate(songs):
        engine.take(song, SongResult(index, song.path, None if texts is None else next(texts)))
        if (index + 1) % settings.block == 0:
            engine.flush()
        yield from engine.finished()
    engine.flush()
    yield from engine.finished()


def reason_of(error: Exception) -> str:
    """Why a song failed: the message of an error raised on purpose, else its type too."""
    if isinstance(error, ApexError):
        return str(error)
    return f"the model failed with {type(error).__name__}: {error}"


def batch_size(encoder: SongEncoder, device: torch.device) -> int:
    """Pieces per batch by default: the encoder's own, more or fewer where that is faster.

    A GPU takes more, by its whole memory: the free memory may change between runs, whose batches
    must be equal, and a batch that does not fit is halved. On a CPU more than half a minute of
    audio no longer fits the caches.
    """
    own = encoder.batch_segments
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return own * max(1, memory // ROOM_BYTES)
    if device.type == "cpu" and encoder.window is not None:
        return max(1, min(own, CPU_SECONDS * encoder.sample_rate // encoder.window))
    return own


@dataclass
class Track:
    """The features of one song by one encoder, as they are encoded.

    Attributes:
        total: sum over pieces of mass times feature, (1, ...); None before the first.
        masses: of the pieces cut so far; their shares are the pieces' weights in the song's mean.
        real: real samples of the pieces.
        kept: the pieces' features (1, ...), where they are asked for.
        missing: pieces cut and not encoded.
        error: why a piece could not be encoded.
    """

    total: Tensor | None = None
    masses: list[float] = field(default_factory=list)
    real: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    missing: int = 0
    error: str | None = None

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
    track: Track
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
        # A song without windows is a batch of its own: a neighbour's length must not change it.
        self.size = 1 if encoder.window is None else size or batch_size(encoder, device)
        self._waiting: deque[_Piece] = deque()
        self._running: tuple[list[_Piece], Tensor] | None = None

    def add(self, track: Track, song: Tensor) -> None:
        """Cut a mono stretch (T,) at the encoder's rate and let its pieces wait."""
        pieces = self.encoder.cut(song[None], [len(song)])
        for samples, real in zip(pieces.samples, pieces.real, strict=True):
            mass = float(real) if self.encoder.by_length else 1.0
            track.masses.append(mass)
            track.real.append(int(real))
            track.missing += 1
            self._waiting.append(_Piece(track, samples, real, mass))

    def drop(self, track: Track) -> None:
        """Forget the pieces of a song that failed."""
        self._waiting = deque(piece for piece in self._waiting if piece.track is not track)

    def encode(self, at_least: int | None = None) -> None:
        """Encode batches while at least that many pieces wait; None: while a batch is full."""
        least = self.size if at_least is None else at_least
        while len(self._waiting) >= least and self._waiting:
            count = min(self.size, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            try:
                features = self._encoded(batch)
            except Exception:
                self._one_by_one(batch)
                continue
            # A GPU computes this batch now; reading the one before does not keep it waiting.
            self._settle()
            self._running = batch, features
        if at_least is not None or self._device.type != "cuda":
            self._settle()

    def _encoded(self, batch: list[_Piece]) -> Tensor:
        samples = torch.stack([piece.samples for piece in batch])
        real = torch.stack([piece.real for piece in batch])
        with torch.no_grad():
            return encode_pieces(self.encoder, samples, real, self.size).float()

    def _one_by_one(self, batch: list[_Piece]) -> None:
        """Encode the pieces of a batch that failed; errors stay with the songs that cause them."""
        for piece in batch:
            self._settle()
            try:
                self._running = [piece], self._encoded([piece])
            except Exception as error:
                piece.track.error = reason_of(error)
                piece.track.missing -= 1

    def _settle(self) -> None:
        if self._running is None:
            return
        batch, features = self._running
        self._running = None
        for piece, feature in zip(batch, features.cpu().split(1), strict=True):
            track, weighed = piece.track, feature * piece.mass
            track.total = weighed if track.total is None else track.total + weighed
            track.missing -= 1
            if self._keep:
                track.kept.append(feature)


class Feed:
    """One song on its way into the queue of one encoder: resampled and cut as its blocks come."""

    def __init__(self, queue: EncoderQueue, sample_rate: int) -> None:
        self.queue, self.track = queue, Track()
        self._resampler = BlockResampler(sample_rate, queue.encoder.sample_rate)
        self._rest: Tensor | None = None

    def push(self, block: Tensor, last: bool) -> None:
        """Take a further block (n,) at the song's own rate."""
        song = self._resampler.push(block, last)
        if self._rest is not None:
            song = torch.cat([self._rest, song])
        if last:
            self.queue.add(self.track, song)
            return
        window = self.queue.encoder.window
        # A whole window waits with the rest: its weight depends on the length of the tail.
        ready = 0 if window is None else max(0, len(song) // window - 1) * window
        if ready:
            self.queue.add(self.track, song[:ready])
        self._rest = song[ready:]


@dataclass
class _OpenSong:
    """A song whose pieces wait in the queues, and its scores by the models of waveforms."""

    result: SongResult
    feeds: list[Feed] = field(default_factory=list)
    called: dict[int, Scores] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        return sum(feed.track.missing for feed in self.feeds)


class _Engine:
    def __init__(self, members: Members, settings: EngineSettings) -> None:
        self._members, self._settings = members, settings
        self._queues = [
            EncoderQueue(
                encoder, members.device, settings.batch_segments, settings.pieces and number == 0
            )
            for number, encoder in enumerate(members.encoders)
        ]
        self._songs: deque[_OpenSong] = deque()

    def take(self, song: DecodedSong, begun: SongResult) -> None:
        """Read a song; its result is finished when its last batch is."""
        opened = _OpenSong(begun)
        self._songs.append(opened)
        if song.error is not None:
            opened.result = begun.failed(song.error)
            return
        try:
            # Rates without a filter of sensible size are refused here.
            opened.feeds = [Feed(queue, song.sample_rate) for queue in self._queues]
            self._read(opened, song)
        except Exception as error:
            for feed in opened.feeds:
                feed.queue.drop(feed.track)
            opened.feeds = []
            opened.result = begun.failed(reason_of(error))
        finally:
            song.close()

    def flush(self) -> None:
        """Encode all pieces that wait."""
        for queue in self._queues:
            queue.encode(at_least=1)

    def finished(self) -> Iterator[SongResult]:
        """The songs at the front that are complete."""
        while self._songs and self._songs[0].missing == 0:
            song = self._songs.popleft()
            try:
                yield self._closed(song)
            except Exception as error:
                yield song.result.failed(reason_of(error))

    def _read(self, opened: _OpenSong, song: DecodedSong) -> None:
        """Every block through loudness, guards and queues, in memory of one block."""
        samples, whole, rate = 0, [], song.sample_rate
        gain, measured = self._gain(song), self._measured(song)
        wide = self._members.reads_channels
        for block, last in _with_last(in_blocks(song, self._members.device, wide)):
            samples += block.shape[-1]
            if gain is not None:
                block = block * gain
            if self._members.takes_waveforms:
                whole.append(block)
            if wide:
                block = block.mean(dim=0)
            for feed in opened.feeds:
                feed.push(block, last)
                feed.queue.encode()
        if whole and self._settings.scored:
            waveforms, prompt = torch.cat(whole, dim=-1)[None], opened.result.prompt
            texts = None if prompt is None else [prompt]
            with torch.no_grad():
                called = self._members.call_models(waveforms, rate, None, texts)
            opened.called = {n: scores.apply(_on_cpu) for n, scores in called.items()}
        opened.result = replace(
            opened.result,
            duration=samples / rate,
            sample_rate=rate,
            measured=self._settings.guards.with_mono_loss(measured, song.facts.mono_loss),
            flags=list(song.facts.flags),
        )

    def _gain(self, song: DecodedSong) -> float | None:
        """The factor to the set loudness; a song of several blocks is read once more for it."""
        target = self._settings.loudness
        if target is None:
            return None
        blocks = _with_last(in_blocks(song, self._members.device))
        first, only = next(blocks)
        if only:
            loud = float(integrated_loudness(first[None], song.sample_rate))
        else:
            rest = (block for block, _ in blocks)
            loud = float(loudness_of_blocks(chain([first], rest), song.sample_rate))
        return None if loud == -float("inf") else 10 ** ((target - loud) / 20)

    def _measured(self, song: DecodedSong) -> Mapping[str, float]:
        guards = self._settings.guards
        if not guards.guards:
            return {}
        return guards.measure_blocks(in_blocks(song, self._members.device), song.sample_rate)

    def _closed(self, song: _OpenSong) -> SongResult:
        result, tracks = song.result, [feed.track for feed in song.feeds]
        if result.error is not None:
            return result
        if failed := [track.error for track in tracks if track.error is not None]:
            return result.failed(failed[0])
        features = tuple(track.mean for track in tracks)
        if not all(bool(torch.isfinite(feature).all()) for feature in features):
            return result.failed(NOT_FINITE)
        if tracks:
            first, rate = tracks[0], song.feeds[0].queue.encoder.sample_rate
            result = replace(
                result,
                features=features,
                weights=first.weights,
                seconds=[real / rate for real in first.real],
                pieces=torch.cat(first.kept) if first.kept else None,
            )
        return self._scored(result, song.called) if self._settings.scored else result

    def _scored(self, result: SongResult, called: Mapping[int, Scores]) -> SongResult:
        members = self._members
        features = [feature.to(members.device) for feature in result.features]
        texts = None if result.prompt is None else [result.prompt]
        with torch.inference_mode(), torch.autocast(members.device.type, enabled=False):
            scores = members.score(features, called, texts).apply(_on_cpu)
            far = members.unfamiliarity(features)
        if broken := [name for name, value in scores.items() if not bool(torch.isfinite(value))]:
            return result.failed(f"the score is not finite: {', '.join(broken)}")
        measured = dict(result.measured)
        if far is not None:
            measured[UNFAMILIAR] = float(far)
        return replace(result, scores=scores, measured=measured)


def _with_last(blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Blocks, and whether each is the last; AudioError where there is none."""
    ahead: Tensor | None = None
    for block in blocks:
        if ahead is not None:
            yield ahead, False
        ahead = block
    if ahead is None:
        raise AudioError("holds no audio samples")
    yield ahead, True


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().float().cpu()
