"""Aesthetic labels from a teacher: a file of scores per song, or a callable that hears songs.

The paper's labels are the outputs of the released SongEval model; any model or panel that gives
the five aesthetic scores in [1, 5] serves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from apex_reward.errors import DataError, UsageError, listed
from apex_reward.files.tables import read_table
from apex_reward.scores.apex import AESTHETIC_HEADS, head_range
from apex_reward.scores.mix import RewardMix

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.rewards.protocol import RewardModel

TeacherScores = dict[str, dict[str, float]]
Teacher = Callable[[Sequence[Path]], Iterable[Mapping[str, Any]]]
ID_COLUMNS = ("audio_id", "id", "path", "audio")


def read_teacher(path: str | Path) -> TeacherScores:
    """Scores by `audio_id` from a `.jsonl`, `.csv` or `.parquet` file.

    The file has `audio_id` (or `id`; else the name of `path` or `audio` without its ending) and
    either the five aesthetic columns or one `songeval_scores` with JSON text.

    Raises:
        DataError: missing columns, a song twice, scores that are not numbers in [1, 5].
    """
    table = read_table(path)
    key = next((name for name in ID_COLUMNS if name in table.column_names), None)
    if key is None:
        raise DataError(f"{path} names no songs; expected a column {' or '.join(ID_COLUMNS)}")
    names = [str(value) for value in table[key].to_pylist()]
    if key in ("path", "audio"):
        names = [Path(name).stem for name in names]
    if "songeval_scores" in table.column_names:
        scores, problems = parse_songeval(table["songeval_scores"])
        rows = [dict(zip(AESTHETIC_HEADS, row, strict=True)) for row in scores.tolist()]
    else:
        missing = [head for head in AESTHETIC_HEADS if head not in table.column_names]
        if missing:
            raise DataError(f"{path} has no column {listed(missing)}; expected the five heads")
        rows, problems = table.select(AESTHETIC_HEADS).to_pylist(), []
    return _checked(str(path), names, rows, problems)


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

    module, colon, attribute = name.partition(":")
    if colon and module not in FOREIGN and not Path(name).exists():
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{name}: {error}; expected package.module:callable") from error
        if not isinstance(found, type) and not isinstance(found, RewardModel):
            return cast(Teacher, found)
    return ModelTeacher(load_reward_model(name, device=device))


class ModelTeacher:
    """A reward model with the five aesthetic heads as a teacher.

    Raises:
        UsageError: it lacks one of them, or reads prompts, which a manifest does not hold.
    """

    def __init__(self, model: RewardModel) -> None:
        from apex_reward.rewards.reward import Reward

        names = [head.name for head in model.heads]
        if lacking := [head for head in AESTHETIC_HEADS if head not in names]:
            raise UsageError(f"{model.name} is no teacher: it has no head {', '.join(lacking)}")
        if model.reads_text:
            raise UsageError(f"{model.name} judges songs by their prompts; a teacher hears only")
        mix = RewardMix(dict.fromkeys(AESTHETIC_HEADS, 1 / len(AESTHETIC_HEADS)))
        self._reward = Reward(model, mix)

    def __call__(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        """The five scores of each song, or its `error`."""
        rows = self._reward.judge([str(path) for path in paths])
        return [
            {"error": row["error"]}
            if row["error"]
            else {head: row[head] for head in AESTHETIC_HEADS}
            for row in rows
        ]


def call_teacher(
    teacher: Teacher, audio_ids: Sequence[str], paths: Sequence[Path]
) -> tuple[TeacherScores, dict[str, str]]:
    """Scores by `audio_id` from a callable: paths in, one mapping of five scores per path out.

    Returns:
        The scores, and the reasons of the songs for which it gave `{"error": reason}` instead.

    Raises:
        DataError: another number of results, or scores that are not numbers in [1, 5].
    """
    rows = [dict(row) for row in teacher(paths)]
    if len(rows) != len(paths):
        raise DataError(f"the teacher gave {len(rows)} results for {len(paths)} songs")
    named = dict(zip(audio_ids, rows, strict=True))
    errors = {name: str(row["error"]) for name, row in named.items() if row.get("error")}
    good = {name: row for name, row in named.items() if name not in errors}
    return _checked("the teacher", list(good), list(good.values()), []), errors


def _checked(
    source: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], problems: list[str]
) -> TeacherScores:
    low, high = head_range(AESTHETIC_HEADS[0])
    repeated = (
        sorted({name for name in names if names.count(name) > 1})
        if (len(set(names)) < len(names))
        else []
    )
    problems = list(problems)
    if repeated:
        problems.append(f"songs given twice: {listed(repeated, 4)}")
    for name, row in zip(names, rows, strict=True):
        for head in AESTHETIC_HEADS:
            value = row.get(head)
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if not number or not low <= float(value or 0) <= high:
                problems.append(f"{name}: {head} is {value}; expected {low:g} to {high:g}")
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise DataError.listing(f"teacher scores of {source}", shown)
    return {
        name: {head: float(row[head]) for head in AESTHETIC_HEADS}
        for name, row in zip(names, rows, strict=True)
    }


def parse_songeval(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], list[str]]:
    """A `songeval_scores` column, JSON text or struct, as (R, 5) in head order.

    Returns:
        The scores, NaN where a row has none, and what is wrong with the column's form.
    """
    import pyarrow as pa

    encoded = column.combine_chunks()
    if pa.types.is_string(encoded.type) or pa.types.is_large_string(encoded.type):
        # Every segment of a song repeats its text: parse each text once.
        encoded = encoded.dictionary_encode()
        texts, codes = encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1)
        values = [_loaded(text) for text in texts]
    else:
        values, codes = encoded.to_pylist(), pa.array(range(len(encoded)))
    rows = [_five(value) for value in values]
    unreadable = sum(row is None for row in rows)
    nothing = [math.nan] * len(AESTHETIC_HEADS)
    table = np.array([*(row or nothing for row in rows), nothing], np.float64)
    problems = [f"{unreadable} values are not an object of five scores"] if unreadable else []
    return table[np.asarray(codes, np.int64)], problems


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _five(value: Any) -> list[float] | None:
    """The five scores of one song; names in any case, as SongEval writes them capitalised."""
    if value is None:
        return [math.nan] * len(AESTHETIC_HEADS)
    if not isinstance(value, Mapping):
        return None
    by_name = {str(key).lower(): score for key, score in value.items()}
    scores = [by_name.get(head) for head in AESTHETIC_HEADS]
    if not all(score is None or isinstance(score, (int, float)) for score in scores):
        return None
    return [math.nan if score is None else float(score) for score in scores]
