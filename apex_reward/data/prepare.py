"""Metadata to a manifest: filters, popularity scores, balance and split, with a report.

Shape key: N = songs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from apex_reward.audio.decoding import sound_facts
from apex_reward.data.labels import scores_of_counts
from apex_reward.data.settings import PrepareSettings
from apex_reward.errors import DataError
from apex_reward.files.tables import write_json, write_table
from apex_reward.metrics import few_songs
from apex_reward.report.charts import histogram
from apex_reward.report.figures import save_figure
from apex_reward.scores.apex import POPULARITY_HEADS

IntArray = npt.NDArray[np.int64]
FRESH = np.timedelta64(14, "D")
NO_ID, NO_COUNTS, ZERO = "no audio_id", "counts missing or negative", "zero streams"
NEW, SAME_ID = "released within two weeks of the newest", "duplicate audio_id"
UNREADABLE, SAME_AUDIO, SURPLUS = "unreadable audio", "duplicate audio", "balance of platforms"
UNKNOWN = "unknown"  # a platform that no column names
# The paper's 85/10/5, dealt to every run of twenty neighbours.
SHARES = {"train": 17, "test": 2, "val": 1}
RUN = sum(SHARES.values())
MANIFEST = pa.schema(
    [(name, pa.string()) for name in ("audio_id", "path", "platform")]
    + [(head, pa.float64()) for head in POPULARITY_HEADS]
    + [("split", pa.string()), ("streams", pa.float64()), ("likes", pa.float64())]
    + [("released", pa.timestamp("us", "UTC"))]
)


def prepare(
    songs: pd.DataFrame,
    settings: PrepareSettings,
    output: Path,
    workers: int = 0,
    on_song: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write `manifest.parquet`, `dropped.jsonl`, `report.json` and a histogram of each score.

    Args:
        songs: rows of metadata, as `read_metadata` gives them; several tables with
            `pandas.concat`.
        settings: how they are filtered, scored and split.
        output: the folder to write into.
        workers: processes that read audio; 0 reads in this one.
        on_song: called with the number of songs whose audio is read, and the number of all.

    Returns:
        The content of `report.json`: `rows_in`, `dropped` by reason, `unreadable` (rows with an
        unreadable count), `kept`, counts by split and platform, and whether platforms were
        `balanced`.

    Raises:
        DataError: no song is left.
    """
    # Sorted, so that the order of rows decides nothing; the index keeps it for the manifest.
    order = ["audio_id", "path", "platform", "streams", "likes"]
    songs = songs.reset_index(drop=True).sort_values(order, kind="stable")
    songs["reason"], songs["detail"] = _reasons(songs), None
    if settings.audio_dir is not None:
        _check_audio(songs, settings.audio_dir, workers, on_song)
    kept = songs[songs["reason"] == ""].copy()
    if not len(kept):
        raise _none_left(songs)
    groups = kept["platform"] if settings.per_platform else None
    for head in POPULARITY_HEADS:
        kept[head] = scores_of_counts(kept[head.removeprefix("score_")], groups)
    # A table without a platform column says nothing that songs could be balanced by.
    balanced = bool((kept["platform"] != "").all())
    if balanced:
        chosen = balance_platforms(kept["platform"], kept["score_streams"], settings.seed)
        songs.loc[kept.index.delete(chosen), "reason"] = SURPLUS
        kept = kept.iloc[chosen].copy()
    kept["split"] = split_songs(kept["platform"], kept["score_streams"], settings.seed)
    report = _report(songs, kept, balanced)
    kept["released"] = kept["released"].dt.tz_localize("UTC")
    rows = kept.assign(platform=kept["platform"].where(kept["platform"] != "", None)).sort_index()
    manifest = pa.Table.from_pandas(rows, MANIFEST, preserve_index=False)
    write_table(output / "manifest.parquet", manifest.replace_schema_metadata())
    dropped = songs.loc[
        songs["reason"] != "", ["audio_id", "path", "reason", "detail"]
    ].sort_index()
    write_table(output / "dropped.jsonl", pa.Table.from_pandas(dropped, preserve_index=False))
    for head in POPULARITY_HEADS:
        save_figure(histogram(kept[head], f"{head} (0 to 100)", "songs"), output / head)
    write_json(output / "report.json", report)
    return report


def _reasons(songs: pd.DataFrame) -> pd.Series:
    """(N,) why the metadata alone drops a song; empty for those it keeps.

    Of songs with one id the first by path is kept. A song without a date is kept: its age is not
    known.
    """
    tests = {
        NEW: songs["released"].max() - songs["released"] < FRESH,
        ZERO: songs["streams"] == 0,
        NO_COUNTS: songs["streams"].isna() | songs["likes"].isna(),
    }
    reasons = pd.Series("", songs.index, "str")
    for reason, chosen in tests.items():  # the last one that holds stays
        reasons[chosen] = reason
    reasons = reasons.where(songs["unreadable"] == "", "unreadable: " + songs["unreadable"])
    reasons[songs["audio_id"] == ""] = NO_ID
    names = songs["audio_id"][reasons == ""]
    reasons[names.index[names.duplicated()]] = SAME_ID
    return reasons


def _check_audio(
    songs: pd.DataFrame, folder: Path, workers: int, on_song: Callable[[int, int], None]
) -> None:
    """Drop what cannot be decoded; of songs that sound the same the first by id is kept."""
    paths = songs["path"][songs["reason"] == ""]
    sounds = sound_facts([str(folder / path) for path in paths], workers)
    seen, lost, again = set[str](), dict[int, str | None](), list[int]()
    for done, (row, sound) in enumerate(zip(paths.index, sounds, strict=True), 1):
        on_song(done, len(paths))
        if sound.facts is None:
            lost[row] = sound.error
        elif sound.facts.digest in seen:
            again.append(row)
        else:
            seen.add(sound.facts.digest)
    songs.loc[again, "reason"] = SAME_AUDIO
    songs.loc[list(lost), "reason"] = UNREADABLE
    songs.loc[list(lost), "detail"] = list(lost.values())


def _none_left(songs: pd.DataFrame) -> DataError:
    counts = songs["reason"].value_counts(sort=False)
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    text = f"no song of {len(songs)} is left after the filters: {listed}"
    lost = songs[songs["reason"] == UNREADABLE]
    if len(lost):
        text += (
            f". The first, {lost['path'].iloc[0]}: {lost['detail'].iloc[0]}; audio files are named "
            "by the column path, by another with --path-column, or else are <audio_id>.mp3"
        )
    return DataError(text)


def _report(songs: pd.DataFrame, kept: pd.DataFrame, balanced: bool) -> dict[str, Any]:
    splits = _counts(kept["split"])
    return {
        "rows_in": len(songs),
        "dropped": _counts(songs["reason"][songs["reason"] != ""]),
        "unreadable": int((songs["unreadable"] != "").sum()),
        "kept": len(kept),
        "splits": splits,
        "platforms": _counts(kept["platform"].replace("", UNKNOWN)),
        "balanced": balanced,
        "warnings": few_songs({name: splits.get(name, 0) for name in ("val", "test")}),
        "dates_not_used": _counts(songs["undated"][songs["undated"] != ""]),
    }


def _counts(texts: pd.Series) -> dict[str, int]:
    return {text: int(count) for text, count in texts.value_counts().sort_index().items()}


def balance_platforms(platforms: Sequence[str], scores: npt.ArrayLike, seed: int) -> IntArray:
    """Rows to keep, rising, so that every platform has as many as the smallest.

    A platform's surplus is dropped evenly over the range of its scores: its rows are sorted by
    score and cut into as many runs as are wanted, and one row is drawn from each run.

    Args:
        platforms: N names.
        scores: (N,) what the sampling is stratified by (the streams score).
    """
    codes, values = _codes(platforms), np.asarray(scores, np.float64)
    wanted, kept = int(np.bincount(codes, minlength=1).min()), []
    for number in range(codes.max(initial=0) + 1):
        rows = np.flatnonzero(codes == number)
        ordered = rows[np.lexsort((rows, values[rows]))]
        longer = np.arange(wanted) < len(rows) % wanted  # as `np.array_split` cuts
        sizes = len(rows) // wanted + longer
        starts = np.cumsum(sizes) - sizes
        kept.append(ordered[starts + np.random.default_rng([seed, number]).integers(0, sizes)])
    return np.sort(np.concatenate(kept))


def split_songs(platforms: Sequence[str], scores: npt.ArrayLike, seed: int) -> list[str]:
    """The split of each of N songs, stratified by platform and score.

    Songs are sorted by platform and score; every run of twenty neighbours is dealt 17 to train,
    2 to test and 1 to val, in random order. A shorter last run is dealt as nearly so as it can be.
    Three songs or more leave no split empty.
    """
    count, values = len(platforms), np.asarray(scores, np.float64)
    order = np.lexsort((values, _codes(platforms)))  # stable: ties stay in the order given
    rng = np.random.default_rng([seed, 1])
    result, whole = np.empty(count, object), count // RUN * RUN
    runs = np.tile(np.array(_deal(RUN), object), (whole // RUN, 1))
    result[order[:whole]] = rng.permuted(runs, axis=1).ravel()
    result[order[whole:]] = rng.permutation(np.array(_deal(count - whole, whole == 0), object))
    return result.tolist()


def _codes(names: Sequence[str]) -> IntArray:
    """(N,) places of names in the order of the sorted names."""
    return pd.Categorical(names).codes.astype(np.int64)


def _deal(count: int, alone: bool = False) -> list[str]:
    """Splits of `count` songs by largest remainder; ties favour the smaller split.

    Args:
        alone: these are all songs: every split gets one where there are three or more.
    """
    target = {split: count * share // RUN for split, share in SHARES.items()}
    by_remainder = sorted(SHARES, key=lambda s: (-(count * SHARES[s] % RUN), SHARES[s]))
    for split in by_remainder[: count - sum(target.values())]:
        target[split] += 1
    for split in target if alone and count >= len(SHARES) else ():
        if target[split] == 0:
            target[split], target["train"] = 1, target["train"] - 1
    return [split for split, number in target.items() for _ in range(number)]
