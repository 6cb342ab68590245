"""Which battles count. The module is light: the command line reads its help from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from apex_reward.errors import UsageError


@dataclass(frozen=True)
class BattleFilter:
    """Which battles to keep; every other one is counted under a reason.

    Args:
        last_months: only this many calendar months, up to that of the newest battle.
        binary: only votes for A or B.
        audio: only battles whose two songs exist.
        min_listening: only battles whose voter listened to each song for this many seconds.
        prebaked: keep battles on the Arena's own prompts.
    """

    last_months: Annotated[int | None, (1, None)] = None
    binary: bool = False
    audio: Annotated[bool, "--with-audio"] = False
    min_listening: Annotated[float | None, "SECONDS"] = None
    prebaked: bool = True

    def __post_init__(self) -> None:
        if self.last_months is not None and self.last_months < 1:
            raise UsageError(f"last_months is {self.last_months}; expected at least 1")
