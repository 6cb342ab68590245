"""Result rows: the scores of a song, mixed and guarded, as plain JSON-ready values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from apex_reward.errors import UsageError
from apex_reward.files.tables import printable
from apex_reward.rewards.engine import SongResult
from apex_reward.rewards.guards import UNFAMILIAR
from apex_reward.scores.head import member_column
from apex_reward.scores.scores import Scores

Row = dict[str, Any]
FILE_COLUMNS = ("path", "duration", "sample_rate", "segments")
"""What a row begins with."""


def row_columns(reward: Any, rewarded: bool, members: bool = False) -> list[str]:
    """The names of a row's numbers: heads, their spreads with an ensemble, the rewards.

    Args:
        members: the same numbers by each member of an ensemble too.
    """
    names = [head.name for head in reward.heads]
    rewards = ["reward_raw", "reward"] if rewarded else []
    if reward.members == 1:
        return [*names, *rewards]
    spreads = [f"{name}_std" for name in names]
    each = [*names, *rewards] if members else []
    own = [member_column(name, i) for name in each for i in range(reward.members)]
    return [*names, *spreads, *rewards, *own]


def song_row(reward: Any, result: SongResult, rewarded: bool, members: bool = False) -> Row:
    """The row of one song.

    Args:
        reward: models, mix and guards.
        result: of the engine.
        rewarded: whether the row gets `reward_raw` and `reward`.
        members: whether it gets `<head>_member0` and so on of an ensemble, and the rewards with
            that member alone. Heads of a smaller ensemble keep their means for further members.

    Returns:
        `path`, `duration` (seconds), `sample_rate` (Hz), `segments` (their number), a column per
        head, `<head>_std` with an ensemble, `reward_raw` and `reward`, `flags` (of the song, the
        guards that tripped, `unfamiliar`), `error` (None or text). In a row with an error
        `segments` is 0 and the other numbers are None.
    """
    values: Row = dict.fromkeys(row_columns(reward, rewarded, members))
    flags = list(result.flags)
    if result.scores is not None:
        values |= result.scores.rows()[0]
        tripped = reward.guards.flags(result.measured)
        # A guard of that name has limits of its own.
        known = UNFAMILIAR in reward.guards.names
        far = [UNFAMILIAR] if not known and result.measured.get(UNFAMILIAR, 0.0) > 1 else []
        flags = [*dict.fromkeys([*flags, *tripped, *far])]
        if rewarded:
            raw = _mixed(reward, result, result.scores)
            values |= {"reward_raw": raw, "reward": reward.guarded(raw, tripped)}
        if members and result.scores.ensembles:
            values |= _member_values(reward, result, tripped if rewarded else None)
    return {
        "path": printable(result.path),
        "duration": result.duration,
        "sample_rate": result.sample_rate,
        "segments": 0 if result.error else max(1, len(result.weights)),
        **values,
        "flags": flags,
        "error": None if result.error is None else printable(result.error),
    }


def _mixed(reward: Any, result: SongResult, scores: Scores) -> float:
    vector = None if result.vector is None else result.vector[None]
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return float(reward.mix_scores(scores, vector))


def _member_values(reward: Any, result: SongResult, tripped: Sequence[str] | None) -> Row:
    """The numbers of one song by each member; without `tripped`, of its heads only."""
    values: Row = {}
    for i in range(reward.members):
        assert result.scores is not None
        own = result.scores.member(i)
        values |= {member_column(name, i): value.item() for name, value in own.items()}
        if tripped is not None:
            raw = _mixed(reward, result, own)
            values[member_column("reward_raw", i)] = raw
            values[member_column("reward", i)] = reward.guarded(raw, tripped)
    return values


def segment_rows(reward: Any, result: SongResult) -> list[Row]:
    """A row per segment of a song; none for a song with an error.

    `path`, `segment` (from 1), `start` and `end` in seconds of real audio, and the heads of that
    segment alone.

    Raises:
        UsageError: the reward is not a single model that cuts songs into windows.
    """
    if result.error is not None:
        return []
    if result.pieces is None or len(result.features) != 1 or reward.parts.takes_waveforms:
        raise UsageError(
            "--segments needs one model that cuts songs into windows; score the others without it"
        )
    parts = reward.parts
    prompts = None if result.prompt is None else [result.prompt] * len(result.pieces)
    with torch.inference_mode():
        scores = parts.score([result.pieces.to(parts.device)], {}, prompts).rows()
    ends = list(accumulate(result.seconds))
    path = printable(result.path)
    return [
        {"path": path, "segment": n, "start": start, "end": end, **heads}
        for n, (start, end, heads) in enumerate(zip([0.0, *ends], ends, scores, strict=False), 1)
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line `path: reason` for each row with an error."""
    return [f"{row['path']}: {row['error']}" for row in rows if row["error"]]
