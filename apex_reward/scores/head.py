"""`Head`: one named output of a reward model, with its range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apex_reward.errors import UsageError

RESERVED = (
    *("path", "duration", "sample_rate", "segments"),
    *("reward", "reward_raw", "flags", "error"),
)
"""Columns of a row of scores; no head has such a name."""


@dataclass(frozen=True)
class Head:
    """One named output of a reward model; higher is better.

    Args:
        name: column and attribute name; a panel writes `model.head`.
        low, high: its range; infinite where it has no bound.

    Raises:
        UsageError: no name, a name with a comma or an equals sign (mixes are written
            `HEAD=WEIGHT,...`), a name of `RESERVED`, or a range that is empty.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if self.name in RESERVED:
            raise UsageError(
                f"a head is called {self.name}, which is a column of every row; choose another "
                f"name than {', '.join(RESERVED)}"
            )
        if not self.name or set(self.name) & set(",= \n"):
            raise UsageError(
                f"a head is called {self.name!r}; expected a name without comma, = or space"
            )
        if not self.low < self.high:
            raise UsageError(f"head {self.name} ranges from {self.low} to {self.high}; swap them?")

    @classmethod
    def of(cls, name: str, low: float | None, high: float | None) -> Head:
        """The head of values from JSON, where None is no bound."""
        return cls(name, -math.inf if low is None else low, math.inf if high is None else high)

    @property
    def bounded(self) -> bool:
        """Whether both ends of the range are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def member_column(name: str, member: int) -> str:
    """The column of a head or the reward by one member (from 0) of an ensemble.

    >>> member_column("clarity", 3)
    'clarity_member3'
    """
    return f"{name}_member{member}"
