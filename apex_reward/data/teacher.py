"""Aesthetic labels from a teacher: a table of scores per song, or a callable that scores songs.

The paper's labels are the outputs of the released SongEval model; any model or panel that gives
the five aesthetic scores in [1, 5] serves.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apex_reward.errors import DataError, UsageError, listed, named
from apex_reward.files.tables import read_table, with_numbers
from apex_reward.scores.apex import AESTHETIC_HEADS, head_range
from apex_reward.scores.mix import RewardMix

if TYPE_CHECKING:
    from apex_reward.rewards.protocol import RewardModel

TeacherScores = dict[str, dict[str, Any]]
"""By `audio_id` the five scores, or `error` with the reason why there are none."""
Teacher = Callable[[Sequence[Path]], Iterable[Mapping[str, Any]]]
NOTHING = [math.nan] * len(AESTHETIC_HEADS)


def read_teacher(path: str | Path) -> TeacherScores:
    """Scores by `audio_id` from a `.jsonl`, `.csv` or `.parquet` file.

    The file has `audio_id`, or `path` (its name without ending, as `score` writes it), and the five
    aesthetic columns. A song that is there twice, or whose scores are not numbers in [1, 5], has an
    `error` in place of its scores.

    Raises:
        DataError: missing columns.
    """
    table = read_table(path)
    key = "audio_id" if "audio_id" in table.column_names else "path"
    if missing := [name for name in (key, *AESTHETIC_HEADS) if name not in table.column_names]:
        raise DataError(f"{path} has no column {listed(missing)}")
    names = [str(value) for value in table[key].to_pylist()]
    if key == "path":
        names = [Path(name).stem for name in names]
    rows = with_numbers(table, AESTHETIC_HEADS)[0].select(AESTHETIC_HEADS).to_pylist()
    found = {name: checked_scores(row) for name, row in zip(names, rows, strict=True)}
    repeated = {name: {"error": "there twice"} for name, n in Counter(names).items() if n > 1}
    return found | repeated


def load_teacher(name: str, device: str | None = None) -> Teacher:
    """The teacher that a name means: the same in every process that extracts.

    Args:
        name: a reward model with the five aesthetic heads, as `load_reward_model` takes it
            (`songeval`, `songeval:FOLDER`, a folder), or `package.module:callable`.
        device: where a reward model runs.

    Raises:
        UsageError: no such model or callable, or a model that lacks an aesthetic head.
    """
    from apex_reward.rewards.load import FOREIGN, load_reward_model
    from apex_reward.rewards.protocol import RewardModel

    module, colon, _ = name.partition(":")
    if colon and module not in FOREIGN and not Path(name).exists():
        found = named(name, "callable")
        if not isinstance(found, type) and not isinstance(found, RewardModel):
            return cast(Teacher, found)
    return model_teacher(load_reward_model(name, device=device))


def model_teacher(model: RewardModel) -> Teacher:
    """A reward model with the five aesthetic heads as a teacher.

    Raises:
        UsageError: it lacks one of them, or reads prompts, which a manifest does not hold.
    """
    from apex_reward.rewards.reward import Reward

    names = [head.name for head in model.heads]
    if lacking := [head for head in AESTHETIC_HEADS if head not in names]:
        raise UsageError(f"{model.name} is no teacher: it has no head {', '.join(lacking)}")
    if model.reads_text:
        raise UsageError(f"{model.name} reads prompts; a teacher gets songs alone")
    reward = Reward(model, RewardMix(dict.fromkeys(AESTHETIC_HEADS, 1 / len(AESTHETIC_HEADS))))
    return lambda paths: reward.judge([str(path) for path in paths])


def call_teacher(teacher: Teacher, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The five scores of every path from a callable, or its `error`.

    Raises:
        DataError: another number of results than of songs.
    """
    rows = [dict(row) for row in teacher(paths)]
    if len(rows) != len(paths):
        raise DataError(f"the teacher gave {len(rows)} results for {len(paths)} songs")
    return [checked_scores(row) for row in rows]


def checked_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """The five scores of a row as floats, or `error` with the reason.

    >>> checked_scores({**dict.fromkeys(AESTHETIC_HEADS, 3), "clarity": 5.5})
    {'error': 'clarity is 5.5; expected 1 to 5'}
    """
    if row.get("error"):
        return {"error": str(row["error"])}
    low, high = head_range(AESTHETIC_HEADS[0])
    scores: dict[str, Any] = {}
    for head in AESTHETIC_HEADS:
        value = row.get(head)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= float(value or 0) <= high:  # NaN is not between them
            said = "missing or unreadable" if value is None or value != value else value
            return {"error": f"{head} is {said}; expected {low:g} to {high:g}"}
        scores[head] = float(value or 0)
    return scores


def parse_songeval(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], list[str]]:
    """A `songeval_scores` column, JSON text or struct, as (R, 5) in head order.

    Returns:
        The scores, NaN where a row has none, and what is wrong with the column's form.
    """
    rows = [
        _parsed(value) if isinstance(value, str) else _five(value) for value in column.to_pylist()
    ]
    unreadable = sum(row is None for row in rows)
    problems = [f"{unreadable} values are not an object of five scores"] if unreadable else []
    scores = np.array([row or NOTHING for row in rows], np.float64)
    return scores.reshape(-1, len(NOTHING)), problems


@functools.lru_cache(1 << 16)  # every segment of a song repeats its text
def _parsed(text: str) -> list[float] | None:
    try:
        return _five(json.loads(text))
    except json.JSONDecodeError:
        return None


def _five(value: Any) -> list[float] | None:
    """The five scores of one song; names in any case, as SongEval writes them capitalised."""
    if value is None:
        return NOTHING
    if not isinstance(value, Mapping):
        return None
    by_name = {str(key).lower(): score for key, score in value.items()}
    scores = [by_name.get(head) for head in AESTHETIC_HEADS]
    if not all(score is None or isinstance(score, (int, float)) for score in scores):
        return None
    return [math.nan if score is None else float(score) for score in scores]
