"""Facts of many files, decoded once and not kept: lengths, and which of them sound the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apex_reward.audio.decoding.decode import PLAIN, DecodedSong, DecodeSettings, SongFacts
from apex_reward.audio.decoding.pool import decode_songs
from apex_reward.errors import AudioError


@dataclass(frozen=True)
class SoundFacts:
    """A file's facts, with its digest; or why it cannot be heard."""

    path: str
    facts: SongFacts | None = None
    error: str | None = None


def sound_facts(
    paths: Sequence[str], workers: int = 0, settings: DecodeSettings = PLAIN
) -> Iterator[SoundFacts]:
    """One SoundFacts per path, in their order; a file that brings a worker down is a failed one.

    Args:
        paths: files to decode.
        workers: processes that decode; 0 decodes in this one.
        settings: for the flags.
    """
    for song in decode_songs(paths, replace(settings, digest=True), workers):
        yield _heard(song)


def _heard(song: DecodedSong) -> SoundFacts:
    try:
        for _ in song.blocks():
            pass
    except AudioError as error:
        return SoundFacts(song.path, error=str(error))
    return SoundFacts(song.path, song.facts)
