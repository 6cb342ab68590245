"""Metadata to a manifest: filters, popularity scores, balance and split, with a report.

Shape key: N = songs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_reward.audio.decoding import sound_facts
from apex_reward.data.labels import scores_of_counts
from apex_reward.data.metadata import Song
from apex_reward.data.plots import plot_distributions
from apex_reward.data.splits import balance_platforms, split_songs
from apex_reward.errors import DataError
from apex_reward.files.tables import write_json, write_table

FRESH = timedelta(days=14)
# Reasons in the order in which they are looked for; a song is counted under the first.
NO_ID, NO_COUNTS, ZERO = "no audio_id", "counts missing or negative", "zero streams"
SAME_ID, NEW = "duplicate audio_id", "released within two weeks of the newest"
UNREADABLE, SAME_AUDIO, SURPLUS = "unreadable audio", "duplicate audio", "balance of platforms"


@dataclass(frozen=True)
class PrepareSettings:
    """How metadata becomes a manifest.

    Attributes:
        audio_dir: where the audio is; None leaves the audio unchecked.
        balance: drop songs until every platform has as many.
        per_platform: take percentiles within each platform.
        seed: of the balance and the split.
        workers: processes that read audio; 0 reads in this one.
    """

    audio_dir: Path | None = None
    balance: bool = True
    per_platform: bool = False
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Dropped:
    """A song that a step left out, and why."""

    song: Song
    reason: str
    detail: str = ""

    def row(self) -> dict[str, str]:
        """As a row of `dropped.jsonl`."""
        named = {"audio_id": self.song.audio_id, "path": self.song.path, "reason": self.reason}
        return {**named, "detail": self.detail} if self.detail else named


def prepare(
    songs: Sequence[Song],
    settings: PrepareSettings,
    output: Path,
    on_song: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write `manifest.parquet`, `dropped.jsonl`, `report.json` and `distributions.png`.

    Args:
        songs: rows of metadata, as `read_metadata` gives them.
        settings: how they are filtered, scored and split.
        output: the folder to write into.
        on_song: called with the number of songs heard and of all to hear.

    Returns:
        The content of `report.json`: `rows_in`, `dropped` by reason, `kept`, and counts by split
        and platform.

    Raises:
        DataError: no song is left.
    """
    dropped: list[Dropped] = []
    kept = _filter_rows(songs, dropped)
    if settings.audio_dir is not None:
        kept = _filter_audio(kept, settings.audio_dir, settings.workers, dropped, on_song)
    if not kept:
        raise _none_left(songs, dropped)
    platforms = [song.platform for song in kept]
    groups = platforms if settings.per_platform else None
    scores = {
        "score_streams": scores_of_counts([song.streams or 0 for song in kept], groups),
        "score_likes": scores_of_counts([song.likes or 0 for song in kept], groups),
    }
    if settings.balance:
        chosen = balance_platforms(platforms, scores["score_streams"], settings.seed)
        surplus = sorted(set(range(len(kept))) - set(chosen.tolist()))
        dropped += [Dropped(kept[i], SURPLUS) for i in surplus]
        kept = [kept[i] for i in chosen]
        scores = {head: values[chosen] for head, values in scores.items()}
    platforms = [song.platform for song in kept]
    splits = split_songs(platforms, scores["score_streams"], settings.seed)
    rows = _manifest_rows(kept, scores, splits)
    report = _report(songs, dropped, rows, settings)
    write_table(output / "manifest.parquet", rows)
    write_table(output / "dropped.jsonl", [drop.row() for drop in dropped])
    plot_distributions(rows, output / "distributions.png")
    write_json(output / "report.json", report)
    return report


def _manifest_rows(
    songs: Sequence[Song], scores: Mapping[str, npt.NDArray[np.float64]], splits: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "audio_id": song.audio_id,
            "path": song.path,
            "platform": song.platform,
            "score_streams": float(scores["score_streams"][i]),
            "score_likes": float(scores["score_likes"][i]),
            "split": splits[i],
            "streams": song.streams,
            "likes": song.likes,
            "released": None if song.released is None else song.released.isoformat(),
        }
        for i, song in enumerate(songs)
    ]


def _none_left(songs: Sequence[Song], dropped: Sequence[Dropped]) -> DataError:
    counts = Counter(drop.reason for drop in dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    text = f"no song of {len(songs)} is left after the filters: {reasons}"
    lost = next((drop for drop in dropped if drop.reason == UNREADABLE), None)
    if lost is not None:
        text += (
            f". The first, {lost.song.path}: {lost.detail}; audio files are named by a column "
            "path, audio, file or filename, by another with --path-column, or else are "
            "<audio_id>.mp3"
        )
    return DataError(text)


def _report(
    songs: Sequence[Song],
    dropped: Sequence[Dropped],
    rows: Sequence[dict[str, Any]],
    settings: PrepareSettings,
) -> dict[str, Any]:
    return {
        "rows_in": len(songs),
        "dropped": dict(sorted(Counter(drop.reason for drop in dropped).items())),
        "kept": len(rows),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "platforms": dict(sorted(Counter(row["platform"] for row in rows).items())),
        "undated": sum(song.released is None for song in songs),
        "dates_not_used": dict(
            Counter(song.undated.partition(":")[0] for song in songs if song.undated)
        ),
        "dates_not_used_examples": list(dict.fromkeys(s.undated for s in songs if s.undated))[:5],
        "audio_checked": settings.audio_dir is not None,
        "percentiles": "per platform" if settings.per_platform else "over all platforms",
        "seed": settings.seed,
    }


def _filter_rows(songs: Sequence[Song], dropped: list[Dropped]) -> list[Song]:
    """What the metadata alone decides. Of songs with one id the first is kept.

    A song without a date is kept: its age cannot be held against it.
    """
    dates = [song.released for song in songs if song.released is not None]
    newest = max(dates, default=None)
    seen: set[str] = set()
    kept = []
    for song in songs:
        reason = _row_reason(song, seen)
        if reason is None and newest and song.released and newest - song.released < FRESH:
            reason = NEW
        if reason is None:
            seen.add(song.audio_id)
            kept.append(song)
        else:
            dropped.append(Dropped(song, reason))
    return kept


def _row_reason(song: Song, seen: set[str]) -> str | None:
    if not song.audio_id:
        return NO_ID
    if song.streams is None or song.likes is None:
        return NO_COUNTS
    if song.streams == 0:
        return ZERO
    return SAME_ID if song.audio_id in seen else None


def _filter_audio(
    songs: Sequence[Song],
    folder: Path,
    workers: int,
    dropped: list[Dropped],
    on_song: Callable[[int, int], None],
) -> list[Song]:
    """What the audio decides. Of songs that sound the same the first is kept."""
    heard = sound_facts([str(folder / song.path) for song in songs], workers)
    seen: set[str] = set()
    kept = []
    for done, (song, sound) in enumerate(zip(songs, heard, strict=True), 1):
        on_song(done, len(songs))
        if sound.facts is None:
            dropped.append(Dropped(song, UNREADABLE, sound.error or ""))
        elif sound.facts.digest in seen:
            dropped.append(Dropped(song, SAME_AUDIO))
        else:
            seen.add(sound.facts.digest)
            kept.append(song)
    return kept
