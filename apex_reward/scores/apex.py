"""What defines APEX: its seven heads, their ranges, its tasks and the paper's three mixes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from apex_reward.errors import expect_one_of
from apex_reward.scores.head import Head

Task = Literal["popularity", "full"]

POPULARITY_HEADS = ("score_streams", "score_likes")
AESTHETIC_HEADS = ("coherence", "musicality", "memorability", "clarity", "naturalness")
HEADS = POPULARITY_HEADS + AESTHETIC_HEADS
APEX_HEADS = (
    *(Head(name, 0.0, 100.0) for name in POPULARITY_HEADS),
    *(Head(name, 1.0, 5.0) for name in AESTHETIC_HEADS),
)
_BY_NAME = {head.name: head for head in APEX_HEADS}


def _mean_of(names: tuple[str, ...]) -> dict[str, float]:
    return dict.fromkeys(names, 1 / len(names))


APEX_MIXES: dict[str, dict[str, float]] = {
    "popularity": _mean_of(POPULARITY_HEADS),
    "aesthetics": _mean_of(AESTHETIC_HEADS),
    "overall": _mean_of(HEADS),
}
"""The paper's three combinations: the mean of two, of five and of all seven heads."""


def task_heads(task: str) -> tuple[str, ...]:
    """Names of a task's heads, in order: `popularity` has the first two, `full` all seven.

    >>> task_heads("popularity")
    ('score_streams', 'score_likes')
    """
    expect_one_of("task", task, get_args(Task))
    return POPULARITY_HEADS if task == "popularity" else HEADS


def head_range(name: str) -> tuple[float, float]:
    """Lowest and highest value of one of APEX's heads.

    >>> head_range("score_likes"), head_range("clarity")
    ((0.0, 100.0), (1.0, 5.0))
    """
    return _BY_NAME[name].low, _BY_NAME[name].high


def known_heads(names: Iterable[str]) -> list[Head]:
    """Heads of these names: with APEX's ranges where the name is APEX's, else without bounds."""
    return [_BY_NAME.get(name) or Head(name) for name in names]


def apex_heads(columns: int) -> tuple[Head, ...]:
    """The heads of a stack of so many columns: the first two, or all seven."""
    return APEX_HEADS[: len(POPULARITY_HEADS)] if columns == len(POPULARITY_HEADS) else APEX_HEADS
