"""Songs to features to scores, block by block, with pieces of many songs in each encoder batch.

The path of a song is `_Engine.take`: loudness, guards, a stream into the queue of every encoder,
the models that take waveforms; `_Engine.finished` scores it. Songs come out in the order in which
they went in. An exception while a song is read, encoded or scored is that song's error; a batch
that fails is encoded again piece by piece.

Shape key: T = samples, n = samples of a block, N = pieces, S = pieces of a song, W = width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from apex_reward.audio.decoding import DecodedSong, decode_songs
from apex_reward.audio.loudness import integrated_loudness, loudness_of_blocks
from apex_reward.audio.resample import BlockResampler
from apex_reward.errors import ApexError, AudioError, expect
from apex_reward.model.encode import SongEncoder, encode_pieces
from apex_reward.prompt import Prompt
from apex_reward.rewards.guards import UNFAMILIAR, Guards
from apex_reward.rewards.panel import Members, members_of
from apex_reward.rewards.protocol import RewardModel
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
        scored: score the features too.

    Raises:
        UsageError: a batch or block below 1.
    """

    loudness: float | None = None
    guards: Guards = field(default_factory=lambda: Guards(()))
    batch_segments: int | None = None
    block: int = BLOCK_SONGS
    scored: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_segments", "block"):
            value = getattr(self, name)
            expect(value is None or value >= 1, name, value, "at least 1")


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
        vector: (W,) what songs are compared by, on the CPU; None where no model has an encoder.
        scores: (1,) of all models, on the CPU; None where there is an `error`.
        weights: shares of the first encoder's S pieces in the song's mean, summing to 1.
        seconds: real audio in each of those pieces, without padding.
        pieces: (S, ...) their features, on the CPU; None where no model has an encoder.
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
    vector: Tensor | None = None
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


class Stream:
    """One song on its way through one encoder: resampled, cut and averaged as its blocks come.

    Attributes:
        masses: of the pieces cut so far; their shares are the pieces' weights in the song's mean.
        real: real samples of the pieces.
        features: of the pieces encoded so far, (1, ...) each, on the CPU.
        missing: pieces cut and not encoded.
        error: why a piece could not be encoded.
    """

    def __init__(self, queue: EncoderQueue, sample_rate: int) -> None:
        self.queue = queue
        self.masses: list[float] = []
        self.real: list[int] = []
        self.features: list[Tensor] = []
        self.missing = 0
        self.error: str | None = None
        self._rest: Tensor | None = None
        self._resampler = BlockResampler(sample_rate, queue.encoder.sample_rate)

    @property
    def mean(self) -> Tensor:
        """The song's feature (1, ...)."""
        first, *others = (f * m for f, m in zip(self.features, self.masses, strict=True))
        return sum(others, start=first) / sum(self.masses)

    def push(self, block: Tensor, last: bool) -> None:
        """Take a further block (n,) at the song's own rate."""
        song = self._resampler.push(block, last)
        song = song if self._rest is None else torch.cat([self._rest, song])
        window, ready = self.queue.encoder.window, len(song)
        if not last:
            # A whole window waits with the rest: its weight depends on the length of the tail.
            ready = 0 if window is None else max(0, ready // window - 1) * window
        self._rest = song[ready:]
        if ready:
            self.cut(song[:ready])
        self.queue.encode()

    def cut(self, song: Tensor) -> None:
        """Cut a mono stretch (T,) at the encoder's rate; its pieces wait for a batch."""
        pieces = self.queue.encoder.cut(song[None], [len(song)])
        self.masses += pieces.weight.tolist()
        self.real += pieces.real.tolist()
        self.missing += len(pieces.real)
        self.queue.waiting.extend(
            (self, *piece) for piece in zip(pieces.samples, pieces.real, strict=True)
        )


Piece = tuple[Stream, Tensor, Tensor]  # of a stream: its samples (n,) and how many are real


class EncoderQueue:
    """Fills encoder batches from songs in order.

    Args:
        encoder: whose batches are filled.
        device: where it and the songs are.
        size: pieces per batch; None takes `batch_size`.
    """

    def __init__(self, encoder: SongEncoder, device: torch.device, size: int | None) -> None:
        self.encoder, self._device = encoder, device
        # A song without windows is a batch of its own: a neighbour's length must not change it.
        self.size = 1 if encoder.window is None else size or batch_size(encoder, device)
        self.waiting: deque[Piece] = deque()
        self._running: tuple[list[Piece], Tensor] | None = None

    def drop(self, stream: Stream) -> None:
        """Forget the pieces of a song that failed."""
        self.waiting = deque(piece for piece in self.waiting if piece[0] is not stream)

    def encode(self, at_least: int | None = None) -> None:
        """Encode batches while at least that many pieces wait; None: while a batch is full."""
        least = self.size if at_least is None else at_least
        while len(self.waiting) >= max(1, least):
            count = min(self.size, len(self.waiting))
            self._encode([self.waiting.popleft() for _ in range(count)])
        if at_least is not None or self._device.type != "cuda":
            self._settle()

    def _encode(self, batch: list[Piece]) -> None:
        _, samples, real = zip(*batch, strict=True)
        try:
            with torch.no_grad():
                features = encode_pieces(
                    self.encoder, torch.stack(samples), torch.stack(real), self.size
                ).float()
        except Exception as error:
            if len(batch) > 1:  # an error stays with the song that causes it
                for piece in batch:
                    self._encode([piece])
                return
            stream = batch[0][0]
            stream.error, stream.missing = reason_of(error), stream.missing - 1
            return
        # A GPU computes this batch now; reading the one before does not keep it waiting.
        self._settle()
        self._running = batch, features

    def _settle(self) -> None:
        batch, features = self._running or ([], torch.zeros(0))
        self._running = None
        for (stream, *_), feature in zip(batch, features.cpu().split(1), strict=False):
            stream.features.append(feature)
            stream.missing -= 1


@dataclass
class _OpenSong:
    """A song whose pieces wait in the queues, and its scores by the models of waveforms."""

    result: SongResult
    streams: list[Stream] = field(default_factory=list)
    called: dict[int, Scores] = field(default_factory=dict)


class _Engine:
    def __init__(self, members: Members, settings: EngineSettings) -> None:
        self._members, self._settings = members, settings
        self._queues = [
            EncoderQueue(encoder, members.device, settings.batch_segments)
            for encoder in members.encoders
        ]
        self._songs: deque[_OpenSong] = deque()

    def take(self, song: DecodedSong, begun: SongResult) -> None:
        """Read a song; its result is finished when its last batch is."""
        opened = _OpenSong(begun)
        self._songs.append(opened)
        try:
            if song.error is not None:
                raise AudioError(song.error)
            # Rates without a filter of sensible size are refused here.
            opened.streams = [Stream(queue, song.sample_rate) for queue in self._queues]
            self._read(opened, song)
        except Exception as error:
            for stream in opened.streams:
                stream.queue.drop(stream)
            opened.streams, opened.result = [], begun.failed(reason_of(error))
        finally:
            song.close()

    def flush(self) -> None:
        """Encode all pieces that wait."""
        for queue in self._queues:
            queue.encode(at_least=1)

    def finished(self) -> Iterator[SongResult]:
        """The songs at the front that are complete."""
        while self._songs and not any(stream.missing for stream in self._songs[0].streams):
            song = self._songs.popleft()
            try:
                yield song.result if song.result.error else self._closed(song)
            except Exception as error:
                yield song.result.failed(reason_of(error))

    def _read(self, opened: _OpenSong, song: DecodedSong) -> None:
        """Every block through loudness, guards and queues, in memory of one block."""
        members, guards, rate = self._members, self._settings.guards, song.sample_rate
        samples, whole = 0, []
        measured: Mapping[str, float] = {}
        if guards.guards:
            measured = guards.measure_blocks(in_blocks(song, members.device), rate)
        gain = self._gain(song, measured)
        for block, last in _with_last(in_blocks(song, members.device, members.reads_channels)):
            samples += block.shape[-1]
            block = block * gain
            if members.takes_waveforms:
                whole.append(block)
            if members.reads_channels:
                block = block.mean(dim=0)
            for stream in opened.streams:
                stream.push(block, last)
        if whole and self._settings.scored:
            waveforms = torch.cat(whole, dim=-1)[None]
            with torch.no_grad():
                called = members.call_models(waveforms, rate, None, _texts(opened.result))
            opened.called = {n: scores.apply(_on_cpu) for n, scores in called.items()}
        opened.result = replace(
            opened.result,
            duration=samples / rate,
            sample_rate=rate,
            measured=guards.with_mono_loss(measured, song.facts.mono_loss),
            flags=list(song.facts.flags),
        )

    def _gain(self, song: DecodedSong, measured: Mapping[str, float]) -> float:
        """The factor to the set loudness; a song of several blocks is read once more for it."""
        target, rate = self._settings.loudness, song.sample_rate
        if target is None:
            return 1.0
        blocks = _with_last(in_blocks(song, self._members.device))
        first, only = next(blocks)
        if only:
            known = self._settings.guards.whole_loudness(measured, len(first), rate)
            loud = float(integrated_loudness(first[None], rate)) if known is None else known
        else:
            rest = (block for block, _ in blocks)
            loud = float(loudness_of_blocks(chain([first], rest), rate))
        return 1.0 if loud == -float("inf") else 10 ** ((target - loud) / 20)

    def _closed(self, song: _OpenSong) -> SongResult:
        """The result of a song whose pieces are all encoded, scored where that is asked for."""
        result, members, streams = song.result, self._members, song.streams
        if failed := [stream.error for stream in streams if stream.error is not None]:
            return result.failed(failed[0])
        means = tuple(stream.mean for stream in streams)
        if not all(bool(torch.isfinite(mean).all()) for mean in means):
            return result.failed(NOT_FINITE)
        features = [mean.to(members.device) for mean in means]
        with torch.inference_mode(), torch.autocast(members.device.type, enabled=False):
            vector = members.vectors(features)
            scores = far = None
            if self._settings.scored:
                scores = members.score(features, song.called, _texts(result)).apply(_on_cpu)
                far = members.unfamiliarity(features)
        if broken := [n for n, value in (scores or {}).items() if not torch.isfinite(value)]:
            return result.failed(f"the score is not finite: {', '.join(broken)}")
        if streams:
            first, rate = streams[0], streams[0].queue.encoder.sample_rate
            result = replace(
                result,
                weights=[mass / sum(first.masses) for mass in first.masses],
                seconds=[real / rate for real in first.real],
                pieces=torch.cat(first.features),
            )
        return replace(
            result,
            features=means,
            vector=None if vector is None else _on_cpu(vector[0]),
            scores=scores,
            measured=result.measured
            if far is None
            else {**result.measured, UNFAMILIAR: float(far)},
        )


def encode_files(
    model: RewardModel,
    paths: Sequence[str],
    *,
    batch_segments: int | None = None,
    workers: int = 0,
) -> Iterator[SongResult]:
    """One SongResult per file, in order; `pieces` holds its segments' layer embeddings (S, L, W).

    Arguments and errors are those of `EngineSettings`; `workers` decode, 0 in this process.
    """
    members = members_of(model)
    settings = EngineSettings(batch_segments=batch_segments, scored=False)
    return run_songs(members, decode_songs(paths, members.decode_settings, workers), settings)


def _with_last(blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Blocks, and whether each is the last; AudioError where there is none."""
    ahead = next(blocks, None)
    if ahead is None:
        raise AudioError("holds no audio samples")
    for block in blocks:
        yield ahead, False
        ahead = block
    yield ahead, True


def _texts(result: SongResult) -> list[Prompt] | None:
    return None if result.prompt is None else [result.prompt]


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().float().cpu()
