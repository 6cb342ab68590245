"""Counts of a scoring run: songs, failures, audio seconds and speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from apex_reward.rewards.rows import Row, printable


@dataclass
class Tally:
    """Counts rows as they come; `speed` is over the rows of this run only.

    Attributes:
        songs, failed: rows, and those with an error.
        seconds: of audio in the rows without one.
        reasons: a line `path: reason` for each failure.
    """

    songs: int = 0
    failed: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    _fresh_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def count(self, row: Row, fresh: bool = True) -> None:
        """Add a row; `fresh` is False for one that a former run left."""
        self.songs += 1
        if row["error"]:
            self.failed += 1
            self.reasons.append(printable(f"{row['path']}: {row['error']}"))
        else:
            self.seconds += row["duration"]
            self._fresh_seconds += row["duration"] if fresh else 0.0

    @property
    def hours(self) -> float:
        """Hours of audio scored."""
        return self.seconds / 3600

    @property
    def speed(self) -> float:
        """Seconds of audio per second of wall time."""
        return self._fresh_seconds / (time.perf_counter() - self._started)

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        length = f"{self.hours:.2f} h" if self.hours >= 1 else f"{self.seconds:.1f} s"
        return f"{self.songs} songs{failed}, {length} of audio, {self.speed:.1f} x real time"
