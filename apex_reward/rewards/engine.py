"""Songs through the models: heard block by block, pieces of many songs packed into batches.

The whole path of a song is `_Engine.take`: loudness, guards, every encoder's queue, then the
members that take waveforms. Songs come out in the order in which they went in.

Shape key: T = samples, n = samples of a block, S = pieces of a song, W = embedding width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from apex_reward.audio.loudness import integrated_loudness, loudness_of_blocks
from apex_reward.errors import AudioError, UsageError
from apex_reward.prompt import Prompt
from apex_reward.rewards.guards import Guards
from apex_reward.rewards.parts import Parts, called
from apex_reward.rewards.queues import EncoderQueue, Feed
from apex_reward.rewards.songs import Song, in_blocks, with_last
from apex_reward.scores.scores import Scores

BLOCK_SONGS = 16
NOT_FINITE = "the encoder's output is not finite; samples may lie far outside [-1, 1]"


@dataclass(frozen=True)
class EngineSettings:
    """How songs are heard.

    Args:
        loudness: LUFS that every song's mono mix is brought to; None leaves it.
        guards: measured on what was decoded, before any gain.
        batch_segments: pieces per encoder batch; None takes `batch_size`.
        block: songs after which every batch is encoded, full or not: batches are made up alike
            whatever the timing, and a run that starts at a multiple of it gives the same bits.
        pieces: keep the features of the first encoder's pieces.

    Raises:
        UsageError: a batch or block below 1.
    """

    loudness: float | None = None
    guards: Guards = field(default_factory=lambda: Guards(()))
    batch_segments: int | None = None
    block: int = BLOCK_SONGS
    pieces: bool = False

    def __post_init__(self) -> None:
        if (self.batch_segments is not None and self.batch_segments < 1) or self.block < 1:
            raise UsageError(
                f"batch_segments is {self.batch_segments} and block {self.block}; "
                "expected at least 1"
            )


@dataclass(frozen=True)
class SongResult:
    """What the models made of one song, or why they made nothing.

    Attributes:
        index: position among the songs.
        path: what the song is called.
        prompt: its prompt, where one was given.
        duration: seconds of audio; None where there is an `error`.
        sample_rate: of the song in Hz; None where there is an `error`.
        features: (1, ...) float32 song means on the CPU, one per encoder.
        called: what members that take waveforms said, by their number.
        weights: shares of the first encoder's S pieces in the song's mean, summing to 1.
        seconds: real audio in each of those pieces, without padding.
        pieces: (S, ...) their features, where asked for.
        measured: the guards' values by name.
        flags: of the file, as in `apex_reward.audio.flags`.
        error: the reason, or None.
    """

    index: int
    path: str
    prompt: Prompt | None = None
    duration: float | None = None
    sample_rate: int | None = None
    features: tuple[Tensor, ...] = ()
    called: Mapping[int, Scores] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pieces: Tensor | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    error: str | None = None


def run_songs(
    parts: Parts,
    songs: Iterable[Song],
    settings: EngineSettings | None = None,
    prompts: Iterable[Prompt | None] | None = None,
) -> Iterator[SongResult]:
    """One SongResult per song, in order, each as soon as it is ready.

    Args:
        parts: the models, on any device and dtype; resampling happens there too.
        songs: as `decode_songs` gives them, or in memory.
        prompts: one per song, for members that read them.
    """
    settings = settings or EngineSettings()
    engine = _Engine(parts, settings)
    texts = iter(prompts) if prompts is not None else None
    for index, song in enumerate(songs):
        engine.take(index, song, None if texts is None else next(texts))
        if (index + 1) % settings.block == 0:
            engine.flush()
        yield from engine.finished()
    engine.flush()
    yield from engine.finished()


@dataclass
class _OpenSong:
    """A song whose pieces wait in the encoders' queues."""

    result: SongResult
    feeds: list[Feed] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return sum(feed.heard.missing for feed in self.feeds)


class _Engine:
    def __init__(self, parts: Parts, settings: EngineSettings) -> None:
        self._parts, self._settings = parts, settings
        self._queues = [
            EncoderQueue(
                encoder, parts.device, settings.batch_segments, settings.pieces and number == 0
            )
            for number, encoder in enumerate(parts.encoders)
        ]
        self._songs: deque[_OpenSong] = deque()

    def take(self, index: int, song: Song, prompt: Prompt | None) -> None:
        """Hear a song; its result is finished when its last batch is."""
        failed = SongResult(index, song.path, prompt, error=song.error)
        if song.error is not None:
            self._songs.append(_OpenSong(failed))
            return
        feeds: list[Feed] = []
        try:
            # Rates without a filter of sensible size are refused here.
            feeds += [queue.open(song.sample_rate) for queue in self._queues]
            result = self._hear(failed, song, feeds)
        except AudioError as error:
            for feed in feeds:
                feed.queue.drop(feed.heard)
            feeds, result = [], SongResult(index, song.path, prompt, error=str(error))
        finally:
            song.close()
        self._songs.append(_OpenSong(result, feeds))

    def flush(self) -> None:
        """Encode all that waits."""
        for queue in self._queues:
            queue.encode(at_least=1)

    def finished(self) -> Iterator[SongResult]:
        """Songs at the front that are complete."""
        while self._songs and self._songs[0].missing == 0:
            yield self._closed(self._songs.popleft())

    def _hear(self, begun: SongResult, song: Song, feeds: list[Feed]) -> SongResult:
        """Every block through loudness, guards and queues, in memory of one block."""
        heard, whole = 0, []
        gain, measured = self._gain(song), self._measured(song)
        takes_waveforms = any(part.encoders is None for part in self._parts.parts)
        for block, last in with_last(in_blocks(song, self._parts.device)):
            heard += len(block)
            if gain is not None:
                block = block * gain
            for feed in feeds:
                feed.push(block, last)
                feed.queue.encode()
            if takes_waveforms:
                whole.append(block)
        said = self._called(torch.cat(whole), song, begun.prompt) if whole else {}
        return SongResult(
            begun.index,
            begun.path,
            begun.prompt,
            duration=heard / song.sample_rate,
            sample_rate=song.sample_rate,
            called=said,
            measured=measured,
            flags=list(song.facts.flags),
        )

    def _gain(self, song: Song) -> float | None:
        """The factor to the set loudness; a song of several blocks is heard once more for it."""
        target, rate = self._settings.loudness, song.sample_rate
        if target is None:
            return None
        blocks = with_last(in_blocks(song, self._parts.device))
        first, only = next(blocks)
        if only:
            loud = float(integrated_loudness(first[None], rate))
        else:
            loud = float(loudness_of_blocks(chain([first], (b for b, _ in blocks)), rate))
        return None if loud == -float("inf") else 10 ** ((target - loud) / 20)

    def _measured(self, song: Song) -> Mapping[str, float]:
        guards = self._settings.guards
        if not guards.guards:
            return {}
        return guards.measure_blocks(in_blocks(song, self._parts.device), song.sample_rate)

    def _called(self, mono: Tensor, song: Song, prompt: Prompt | None) -> dict[int, Scores]:
        """What the members say that take waveforms, off the graph."""
        texts = None if prompt is None else [prompt]
        said = {}
        for number, part in enumerate(self._parts.parts):
            if part.encoders is None:
                wanted = self._parts.texts(part, texts, 1)
                with torch.no_grad():
                    scores = called(part.model, mono[None], song.sample_rate, None, wanted)
                said[number] = scores.apply(lambda value: value.detach().float().cpu())
        return said

    def _closed(self, song: _OpenSong) -> SongResult:
        result = song.result
        if result.error is not None:
            return result
        features = tuple(feed.heard.mean for feed in song.feeds)
        if not all(bool(torch.isfinite(feature).all()) for feature in features):
            return SongResult(result.index, result.path, result.prompt, error=NOT_FINITE)
        values = {**vars(result), "features": features}
        if song.feeds:
            first = song.feeds[0].heard
            rate = song.feeds[0].queue.encoder.sample_rate
            values["weights"] = first.weights
            values["seconds"] = [real / rate for real in first.real]
            values["pieces"] = torch.cat(first.kept) if first.kept else None
        return SongResult(**values)
