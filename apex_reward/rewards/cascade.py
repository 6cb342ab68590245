"""Cascade: a student scores all songs, and the teacher the best few of each prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from apex_reward.errors import UsageError
from apex_reward.rewards.rows import FILE_COLUMNS, Row, row_columns

JUDGED_BY = "judged_by"
DRAWS = 4096
STEP = 1e-3  # share of the mix's range between the kept songs and the others
# Rows of the numbered songs by one reward.
Score = Callable[[Any, Sequence[int]], Sequence[Row]]


def cascade_rows(
    reward: Any, songs: int, score: Score, groups: Sequence[Hashable] | None = None
) -> list[Row]:
    """A row per song: the teacher's of kept songs, for others a reward without heads.

    Args:
        reward: of `Reward.cascade`.
        songs: their number.
        score: called with the student's reward and all songs, then with the teacher's and the kept
            ones.
        groups: the prompt of each song; None: all songs are one group.

    Returns:
        Rows with a column `judged_by`: `teacher`, `student`, or None in a row with an error of the
        student. The `reward` of a song that is not kept lies below the lowest kept one of its
        prompt, in the student's order.
    """
    groups = [0] * songs if groups is None else groups
    first = score(reward.student, range(songs))
    values = [row["reward"] for row in first]
    kept = kept_songs(values, groups, reward.keep)
    second = dict(zip(kept, score(reward.teacher, kept), strict=True))
    ends: dict[Hashable, tuple[float, float]] = {}  # lowest of the student's and the teacher's
    for number, row in second.items():
        if row["reward"] is not None:
            low = ends.get(groups[number], (math.inf, math.inf))
            ends[groups[number]] = min(low[0], values[number]), min(low[1], row["reward"])
    empty = dict.fromkeys(row_columns(reward, rewarded=True))
    rows = []
    for number, row in enumerate(first):
        if number in second:
            rows.append({**second[number], JUDGED_BY: "teacher"})
            continue
        lowered = None
        if row["error"] is None and values[number] is not None:
            lowered = _lowered(reward, values[number], ends.get(groups[number]))
        rows.append({
            **{name: row[name] for name in FILE_COLUMNS}, **empty, "reward": lowered,
            "flags": row["flags"], "error": row["error"],
            JUDGED_BY: None if row["error"] else "student",
        })  # fmt: skip
    return rows


def kept_songs(
    values: Sequence[float | None], groups: Sequence[Hashable], keep: float
) -> list[int]:
    """Numbers of the songs that the teacher scores, rising.

    Args:
        values: the student's rewards; None for a song that it could not score.
        groups: the prompt of each song.
        keep: share of a prompt's songs, rounded up.

    >>> kept_songs([0.1, 0.9, 0.5, None, 0.2], "aaabb", 0.5)
    [1, 2, 4]
    """
    kept = []
    for group in dict.fromkeys(groups):
        own = [number for number, one in enumerate(groups) if one == group]
        count = max(1, math.ceil(keep * len(own) - 1e-9))
        scored = [(-value, number) for number in own if (value := values[number]) is not None]
        kept += [number for _, number in sorted(scored)[:count]]
    return sorted(kept)


def _lowered(reward: Any, value: float, ends: tuple[float, float] | None) -> float:
    """A reward below that of the lowest kept song, above the floor where that song is."""
    if ends is None:  # the teacher could score no kept song of the prompt
        return value
    student, teacher = ends
    low, high = reward.mix.bounds(reward.heads, 1)
    drop = max(0.0, student - value) + STEP * (high - low if math.isfinite(high - low) else 1.0)
    try:
        room = teacher - reward.floor_of(1)
    except UsageError:  # a mix without a lowest value
        room = math.inf
    if 0 < room < math.inf:
        drop = room * drop / (room + drop)
    return min(teacher - drop, math.nextafter(teacher, -math.inf))


def lost_share(correlation: float, songs: int, keep: float) -> float:
    """Share of prompts whose best song by the teacher is not among those that the student keeps.

    Drawn from normal rewards of the two with that correlation over a prompt's songs.

    >>> lost_share(1.0, 8, 0.125), lost_share(0.3, 8, 1.0)
    (0.0, 0.0)
    """
    count = max(1, math.ceil(keep * songs - 1e-9))
    rng = np.random.default_rng(0)
    teacher, noise = rng.standard_normal((2, DRAWS, songs))
    student = correlation * teacher + math.sqrt(max(0.0, 1 - correlation**2)) * noise
    best = np.take_along_axis(student, teacher.argmax(axis=1)[:, None], axis=1)
    return float(((student > best).sum(axis=1) >= count).mean())
