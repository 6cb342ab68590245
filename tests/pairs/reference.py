"""The pair builder written the slow, obvious way: loops over dicts, no arrays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def usable_by_prompt(rows: list[Row], axes: list[str], drop_flags: list[str]) -> dict[Any, list]:
    """Candidates with a value on each axis and none of the flags, by prompt, in audio order."""
    prompts: dict[Any, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["audio"]):
        if all(is_number(row.get(axis)) for axis in axes) and not any(
            flag in (row.get("flags") or []) for flag in drop_flags
        ):
            prompts[row["prompt_id"]].append(row)
    return {prompt: songs for prompt, songs in prompts.items() if len(songs) > 1}


def propose(
    songs: list[Row],
    strategy: str,
    axes: list[str],
    may: Callable[[Row, Row], bool] = lambda a, b: True,
    **settings: Any,
) -> set:
    """(chosen, rejected) audio paths that a strategy proposes for one prompt.

    `may` says whether one song may be chosen over another.
    """
    axis = axes[0]
    least = settings.get("min_margin", 0.0)
    leads = [(a, b) for a in songs for b in songs if a[axis] > b[axis] and may(a, b)]
    if strategy == "best-worst":
        widest = max(leads, key=lambda pair: pair[0][axis] - pair[1][axis], default=None)
        return set() if widest is None else {(widest[0]["audio"], widest[1]["audio"])}
    if strategy == "top-bottom":
        ranked = sorted(songs, key=lambda song: -song[axis])
        k = min(settings["top_k"], len(songs) // 2)
        above = {b["audio"]: [a for a in ranked if (a, b) in leads][:k] for b in songs}
        below = {a["audio"]: [b for b in ranked[::-1] if (a, b) in leads][:k] for a in songs}
        return {
            (a["audio"], b["audio"])
            for a, b in leads
            if a in above[b["audio"]] and b in below[a["audio"]]
        }
    return {
        (a["audio"], b["audio"])
        for a in songs
        for b in songs
        if a is not b
        if may(a, b) and beats(a, b, songs, strategy, axes, least, settings, may)
    }


def beats(
    a: Row,
    b: Row,
    songs: list[Row],
    strategy: str,
    axes: list[str],
    least: float,
    settings: dict[str, Any],
    may: Callable[[Row, Row], bool],
) -> bool:
    axis = axes[0]

    def gap(name: str, share: float) -> float:
        differences = [
            abs(songs[i][name] - songs[j][name])
            for i in range(len(songs))
            for j in range(i + 1, len(songs))
            if (songs[i][axis] >= songs[j][axis] and may(songs[i], songs[j]))
            or (songs[j][axis] >= songs[i][axis] and may(songs[j], songs[i]))
        ]
        return quantile(differences, share)

    if strategy == "all":
        return a[axis] > b[axis] and a[axis] - b[axis] >= least
    if strategy == "margin":
        return a[axis] > b[axis] and a[axis] - b[axis] >= gap(axis, settings["quantile"])
    if strategy == "mrsd":
        return (
            a[axis] > b[axis]
            and a[axis] - b[axis] >= gap(axis, settings["quantile"])
            and all(a[name] - b[name] >= gap(name, 0.5) for name in axes[1:])
        )
    if strategy == "pareto":
        return all(a[name] >= b[name] for name in axes) and any(
            a[name] > b[name] and a[name] - b[name] >= least for name in axes
        )
    assert strategy == "two-axis"
    reaches = [
        all(song[name] >= value for name, value in settings["threshold"].items()) for song in (a, b)
    ]
    return reaches[0] and not reaches[1]


def greedy(pairs: list[tuple], per_prompt: int | None, per_candidate: int | None) -> list[tuple]:
    """(prompt, chosen, rejected, margin) pairs from the widest margin down, while there is room."""
    kept: list[tuple] = []
    for pair in sorted(pairs, key=lambda pair: (-pair[3], pair[1], pair[2])):
        of_prompt = [other for other in kept if other[0] == pair[0]]
        if per_prompt is not None and len(of_prompt) >= per_prompt:
            continue
        if per_candidate is not None and any(
            sum(song in other[1:3] for other in of_prompt) >= per_candidate for song in pair[1:3]
        ):
            continue
        kept.append(pair)
    return kept


def build(
    rows: list[Row], strategy: str, axes: list[str], protect: dict[str, float], **settings: Any
) -> set[tuple[Any, str, str]]:
    """(prompt, chosen, rejected): constraints, then the strategy, the margin and the limits."""
    involved = [*axes, *protect, *settings.get("threshold", {})]
    prompts = usable_by_prompt(rows, involved, settings.get("drop_flags", []))
    duration, loudness = settings.get("match_duration"), settings.get("match_loudness")
    if duration is not None or loudness is not None:
        complete = [
            row
            for row in rows
            if (duration is None or is_number(row.get("duration")))
            and (loudness is None or is_number(row.get("loudness")))
        ]
        prompts = usable_by_prompt(complete, involved, settings.get("drop_flags", []))
    everyone = [song[axes[0]] for songs in prompts.values() for song in songs]
    pairs = []
    for prompt, songs in prompts.items():
        by_audio = {song["audio"]: song for song in songs}

        def may(a: Row, b: Row) -> bool:
            return passes(a, b, axes[0], everyone, protect, settings)

        for chosen, rejected in propose(songs, strategy, axes, may, **settings):
            margin = by_audio[chosen][axes[0]] - by_audio[rejected][axes[0]]
            least = settings.get("min_margin", 0.0)
            if strategy in ("all", "pareto") or least <= 0 or margin >= least:
                pairs.append((prompt, chosen, rejected, margin))
    kept = greedy(
        pairs, settings.get("max_pairs_per_prompt"), settings.get("max_pairs_per_candidate")
    )
    return {pair[:3] for pair in kept}


def passes(
    a: Row,
    b: Row,
    axis: str,
    everyone: list[float],
    protect: dict[str, float],
    settings: dict[str, Any],
) -> bool:
    def bound(given: float | str) -> float:
        return quantile(everyone, float(given[1:])) if isinstance(given, str) else given

    floor, ceiling = settings.get("chosen_floor"), settings.get("rejected_ceiling")
    if floor is not None and a[axis] < bound(floor):
        return False
    if ceiling is not None and b[axis] > bound(ceiling):
        return False
    if any(b[name] - a[name] > tolerance for name, tolerance in protect.items()):
        return False
    return all(
        settings.get(f"match_{name}") is None or abs(a[name] - b[name]) <= settings[f"match_{name}"]
        for name in ("duration", "loudness")
    )
