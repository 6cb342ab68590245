"""Metadata to a manifest: filters, popularity scores, balance and split, with a report.

Shape key: N = songs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from apex_reward.audio.decoding import sound_facts
from apex_reward.data.labels import scores_of_counts
from apex_reward.data.metadata import Songs
from apex_reward.data.settings import PrepareSettings
from apex_reward.errors import DataError
from apex_reward.files.tables import write_json, write_table, write_text
from apex_reward.report.figures import label, new_panels, save_figure
from apex_reward.scores.apex import POPULARITY_HEADS

IntArray = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.object_]
FRESH = np.timedelta64(14, "D")
# Reasons in the order in which they are looked for; a song is counted under the first.
NO_ID, NO_COUNTS, ZERO = "no audio_id", "counts missing or negative", "zero streams"
NEW, SAME_ID = "released within two weeks of the newest", "duplicate audio_id"
UNREADABLE, SAME_AUDIO, SURPLUS = "unreadable audio", "duplicate audio", "balance of platforms"
UNKNOWN = "unknown"  # a platform that no column names
# The paper's 85/10/5, dealt to every run of twenty neighbours.
SHARES = {"train": 17, "test": 2, "val": 1}
RUN = sum(SHARES.values())
FEW_SONGS = 30


def prepare(
    songs: Songs,
    settings: PrepareSettings,
    output: Path,
    workers: int = 0,
    on_song: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write `manifest.parquet`, `dropped.jsonl`, `report.json` and `distributions.png`.

    Args:
        songs: rows of metadata, as `read_metadata` gives them.
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
    reasons, details = _reasons(songs), dict[int, str]()
    if settings.audio_dir is not None:
        _check_audio(songs, settings.audio_dir, workers, reasons, details, on_song)
    kept = np.flatnonzero(reasons == "")
    if len(kept) == 0:
        raise _none_left(songs, reasons, details)
    names = songs.platform.to_numpy(zero_copy_only=False)
    groups = names[kept] if settings.per_platform else None
    streams = scores_of_counts(songs.streams[kept], groups)
    likes = scores_of_counts(songs.likes[kept], groups)
    # A table without a platform column says nothing that songs could be balanced by.
    balanced = settings.balance and "" not in set(names[kept])
    if balanced:
        chosen = balance_platforms(names[kept], streams, settings.seed)
        reasons[np.delete(kept, chosen)] = SURPLUS
        kept, streams, likes = kept[chosen], streams[chosen], likes[chosen]
    rows = {
        "audio_id": songs.audio_id.take(pa.array(kept)),
        "path": songs.path.take(pa.array(kept)),
        "platform": pa.array(np.where(names[kept] == "", None, names[kept]), pa.string()),
        "score_streams": streams,
        "score_likes": likes,
        "split": pa.array(split_songs(names[kept], streams, settings.seed), pa.string()),
        "streams": songs.streams[kept],
        "likes": songs.likes[kept],
        "released": pa.array(songs.released[kept], pa.timestamp("us", "UTC")),
    }
    manifest = pa.table(rows)
    report = _report(songs, reasons, manifest, settings, balanced)
    write_table(output / "manifest.parquet", manifest)
    lines = (
        json.dumps(row, ensure_ascii=False) + "\n" for row in _dropped(songs, reasons, details)
    )
    write_text(output / "dropped.jsonl", "".join(lines))
    plot_distributions(manifest, output / "distributions.png")
    write_json(output / "report.json", report)
    return report


def _reasons(songs: Songs) -> TextArray:
    """(N,) why the metadata alone drops a song; empty for those it keeps.

    Of songs with one id the first is kept. A song without a date is kept: its age is not known.
    """
    reasons = np.full(len(songs), "", object)
    newest = np.fmax.reduce(songs.released, initial=np.datetime64("NaT", "us"))
    with np.errstate(invalid="ignore"):
        tests = {
            NEW: newest - songs.released < FRESH,
            ZERO: songs.streams == 0,
            NO_COUNTS: np.isnan(songs.streams) | np.isnan(songs.likes),
        }
    for reason, chosen in tests.items():  # the last one that holds stays
        reasons[chosen] = reason
    for row, column in songs.unreadable.items():
        reasons[row] = f"unreadable: {column}"
    reasons[np.asarray(pc.equal(songs.audio_id, ""), bool)] = NO_ID
    left = np.flatnonzero(reasons == "")
    codes = songs.audio_id.take(pa.array(left)).dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    reasons[np.delete(left, first)] = SAME_ID
    return reasons


def _check_audio(
    songs: Songs,
    folder: Path,
    workers: int,
    reasons: TextArray,
    details: dict[int, str],
    on_song: Callable[[int, int], None],
) -> None:
    """Drop what cannot be decoded; of songs that sound the same the first is kept."""
    kept = np.flatnonzero(reasons == "").tolist()
    files = [str(folder / songs.path[row].as_py()) for row in kept]
    seen: set[str] = set()
    for done, (row, sound) in enumerate(zip(kept, sound_facts(files, workers), strict=True), 1):
        on_song(done, len(kept))
        if sound.facts is None:
            reasons[row], details[row] = UNREADABLE, sound.error or ""
        elif sound.facts.digest in seen:
            reasons[row] = SAME_AUDIO
        else:
            seen.add(sound.facts.digest)


def _dropped(songs: Songs, reasons: TextArray, details: Mapping[int, str]) -> list[dict[str, str]]:
    """Rows of `dropped.jsonl`."""
    rows = np.flatnonzero(reasons != "")
    ids, paths = (
        values.take(pa.array(rows)).to_pylist() for values in (songs.audio_id, songs.path)
    )
    return [
        {"audio_id": name, "path": path, "reason": reasons[row]}
        | ({"detail": details[row]} if row in details else {})
        for row, name, path in zip(rows.tolist(), ids, paths, strict=True)
    ]


def _none_left(songs: Songs, reasons: TextArray, details: Mapping[int, str]) -> DataError:
    counts = Counter(reasons.tolist())
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    text = f"no song of {len(songs)} is left after the filters: {listed}"
    lost = next((row for row in details if reasons[row] == UNREADABLE), None)
    if lost is not None:
        text += (
            f". The first, {songs.path[lost].as_py()}: {details[lost]}; audio files are named by a "
            "column path, audio, file or filename, by another with --path-column, or else are "
            "<audio_id>.mp3"
        )
    return DataError(text)


def _report(
    songs: Songs, reasons: TextArray, manifest: pa.Table, settings: PrepareSettings, balanced: bool
) -> dict[str, Any]:
    dropped = Counter(reasons[reasons != ""].tolist())
    undated, splits = songs.undated.values(), _value_counts(manifest["split"])
    return {
        "rows_in": len(songs),
        "dropped": dict(sorted(dropped.items())),
        "unreadable": len(songs.unreadable),
        "kept": len(manifest),
        "splits": splits,
        "platforms": _value_counts(pc.fill_null(manifest["platform"], UNKNOWN)),
        "balanced": balanced,
        "warnings": [
            f"the split {name} has {splits.get(name, 0)} songs; figures of fewer than {FEW_SONGS} "
            "songs vary widely"
            for name in ("val", "test")
            if splits.get(name, 0) < FEW_SONGS
        ],
        "undated": int(np.isnat(songs.released).sum()),
        "dates_not_used": dict(Counter(text.partition(":")[0] for text in undated)),
        "dates_not_used_examples": list(dict.fromkeys(undated))[:5],
        "audio_checked": settings.audio_dir is not None,
        "percentiles": "per platform" if settings.per_platform else "over all platforms",
        "seed": settings.seed,
    }


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column)
    return dict(sorted((row["values"], row["counts"]) for row in counted.to_pylist()))


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
    order = np.lexsort((values, _codes(platforms)))  # stable: ties stay in the order of rows
    rng = np.random.default_rng([seed, 1])
    result, whole = np.empty(count, object), count // RUN * RUN
    runs = np.tile(np.array(_deal(RUN), object), (whole // RUN, 1))
    result[order[:whole]] = rng.permuted(runs, axis=1).ravel()
    result[order[whole:]] = rng.permutation(np.array(_deal(count - whole, whole == 0), object))
    return result.tolist()


def _codes(names: Sequence[str]) -> IntArray:
    """(N,) places of names in the order of the sorted names."""
    encoded = pa.array(names, pa.string()).dictionary_encode()
    places = np.argsort(np.argsort(encoded.dictionary.to_pylist()))
    return np.asarray(places[encoded.indices.to_numpy()], np.int64)


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


def plot_distributions(manifest: pa.Table, path: Path, formats: Sequence[str] = ("png",)) -> None:
    """Counts (log scale) and scores per platform, and scores per split.

    Args:
        path: of the PNG; other formats are written beside it.
        formats: as `save_figure` takes them.
    """
    figure, panels = new_panels(2, 3, 13, 7)
    for line, head in enumerate(POPULARITY_HEADS):
        count = head.removeprefix("score_")
        top = max(pc.max(manifest[count]).as_py(), 2)
        edges = np.concatenate([[0], np.geomspace(1, top, 20)])
        scores = np.linspace(0, 100, 21)
        counted, scored, split = panels[3 * line : 3 * line + 3]
        _outlines(counted, manifest, "platform", count, edges)
        counted.set_xscale("symlog", linthresh=1)
        counted.set(title=f"{count}, by platform", xlabel=f"{count} (count)")
        _outlines(scored, manifest, "platform", head, scores)
        scored.set(title=f"{head}, by platform", xlabel=f"{head} (0 to 100)")
        _outlines(split, manifest, "split", head, scores, density=True)
        split.set(title=f"{head}, by split (shares)", xlabel=f"{head} (0 to 100)")
    figure.suptitle(f"{len(manifest)} songs")
    save_figure(figure, path.with_suffix(""), formats)


def _outlines(
    panel: Axes, manifest: pa.Table, group: str, column: str, edges: Any, density: bool = False
) -> None:
    """One outlined histogram per value of `group`."""
    groups = pc.fill_null(manifest[group], UNKNOWN)
    for name in sorted(pc.unique(groups).to_pylist()):
        values = manifest[column].filter(pc.equal(groups, name)).to_numpy()
        heights = np.histogram(values, edges)[0]
        panel.stairs(heights / len(values) if density else heights, edges, label=label(name))
    panel.set_ylabel("share of songs" if density else "songs")
    panel.legend(fontsize=8, frameon=False)
