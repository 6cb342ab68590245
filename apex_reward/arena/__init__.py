"""Agreement with human votes.

`sources.load_battles` reads votes, `agreement.evaluate_battles` measures how far scores agree with
them, `calibration.calibrate` fits a preference head, `leaderboard.leaderboards` ranks systems, and
`words.findings` puts figures into words. The command line `apex-reward arena` does the same.
This module is light: the command line reads its options from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


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
