"""Axes: the numbers that candidates are compared on, columns of a table or mixes of heads.

Shape key: N = candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apex_reward.errors import DataError, listed
from apex_reward.scores.apex import HEADS
from apex_reward.scores.head import member_column

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.scores.mix import RewardMix

Floats = npt.NDArray[np.float64]


def axis_values(table: pa.Table, axis: str) -> Floats:
    """(N,) values of a numeric column or of a mix of heads, NaN where there is none.

    Raises:
        DataError: neither a column nor a mix, or a column that is not numeric.
    """
    mix = axis_mix(table, axis)
    if mix is None:
        return numbers(table, axis)
    return _mixed(mix, {head: numbers(table, head) for head in mix.weights})


def _mixed(mix: RewardMix, values: dict[str, Floats]) -> Floats:
    from torch import from_numpy

    from apex_reward.scores.scores import Scores

    return mix(Scores({head: from_numpy(column) for head, column in values.items()})).numpy()


def member_values(table: pa.Table, axis: str, needed: bool) -> Floats | None:
    """(N, M) what each member of an ensemble says of an axis, from columns `<name>_member<i>`.

    Args:
        needed: raise where they are not there; else None.

    Raises:
        DataError: fewer than two members.
    """
    mix = axis_mix(table, axis)
    names = [axis] if mix is None else list(mix.weights)
    columns: list[Floats] = []
    while all(member_column(name, len(columns)) in table.column_names for name in names):
        own = {name: numbers(table, member_column(name, len(columns))) for name in names}
        columns.append(own[axis] if mix is None else _mixed(mix, own))
    if len(columns) > 1:
        return np.stack(columns, axis=1)
    if needed:
        raise DataError(
            f"no columns {listed([member_column(name, 0) for name in names])} and on of an "
            "ensemble's members; `score --members` writes them, --model with an ensemble fills "
            "them in"
        )
    return None


def axis_mix(table: pa.Table, axis: str) -> RewardMix | None:
    """The mix that an axis names, None where it is a column; a column of that name comes first."""
    from apex_reward.scores.apex import APEX_MIXES
    from apex_reward.scores.mix import RewardMix

    if axis in table.column_names or not ("=" in axis or axis in APEX_MIXES):
        return None
    return RewardMix.parse(axis)


def measure(table: pa.Table, name: str) -> Floats:
    """(N,) values of a numeric column, all NaN where there is no such column."""
    if name in table.column_names:
        return numbers(table, name)
    return np.full(len(table), np.nan)


def numbers(table: pa.Table, name: str) -> Floats:
    """A numeric column as (N,) float64; null is NaN."""
    import pyarrow as pa

    if name not in table.column_names:
        numeric = [f.name for f in table.schema if is_number(f.type)]
        raise DataError(
            f"no column {name!r}; the numeric columns are {listed(numeric) or 'none'}"
            + (", and --model scores candidates that lack a head" if name in HEADS else "")
        )
    column = table[name]
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not is_number(column.type):
        raise DataError(f"column {name!r} holds {column.type} values; an axis needs numbers")
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can be an axis."""
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
