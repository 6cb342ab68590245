"""The votes: who is asked what, on which side, and the file that grows by a row per vote."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from apex_reward.errors import AudioError, DataError, UsageError
from apex_reward.files.tables import json_line, read_jsonl
from apex_reward.listen.sound import equally_loud
from apex_reward.listen.sources import Comparison

Preference = Literal["A", "B", "TIE", "BOTH_BAD"]
Order = Literal["random", "informative"]


@dataclass(frozen=True)
class Question:
    """One comparison as a voter meets it: `swapped` puts the second song on side A."""

    identity: str
    comparison: Comparison
    swapped: bool


@dataclass(frozen=True)
class Open:
    """A question on somebody's page: WAV bytes of A and B, and their lengths in seconds."""

    voter: str
    question: Question
    wavs: tuple[bytes, bytes]
    seconds: tuple[float, float]


def plan(
    comparisons: Sequence[Comparison], voter: str, seed: int, order: Order = "random"
) -> list[Question]:
    """All questions of a voter, in order; per pair of systems each side gets half of the songs.

    `informative` asks for the smallest margins first. Reproducible from seed and voter.

    Raises:
        UsageError: `informative` without a margin on every comparison.
    """
    draw = random.Random(f"{seed}/{voter}")
    items = list(comparisons)
    draw.shuffle(items)
    if order == "informative":
        if any(item.margin is None for item in items):
            raise UsageError("--order informative needs a column 'margin', as pairs.jsonl has it")
        items.sort(key=lambda item: item.margin or 0.0)
    # Sides come in twos per pair of systems, so that they stay even wherever a voter stops.
    waiting: dict[tuple[str, str], list[bool]] = defaultdict(list)
    asked = []
    for item in items:
        sides = waiting[item.systems]
        if not sides:
            first = draw.random() < 0.5
            sides += [first, not first]
        asked.append(Question(_identity(item, voter), item, sides.pop()))
    return asked


def _identity(item: Comparison, voter: str) -> str:
    """A vote's uuid, of songs, prompt and voter: the votes of two voters both count."""
    parts = [item.prompt, *sorted(map(str, item.songs)), voter]
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\0".join(parts)))


class Session:
    """Voting on `comparisons` into the file `output`; resumes from the votes that are there.

    Args:
        min_seconds: of each song that must have been heard; a shorter song, to its end.
    """

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        output: Path,
        *,
        seed: int = 0,
        order: Order = "random",
        min_seconds: float = 3.0,
    ) -> None:
        self.comparisons, self.output, self.seed, self.order = comparisons, output, seed, order
        self.min_seconds = min_seconds
        self.unreadable: dict[str, str] = {}
        self._open: dict[str, Open] = {}
        self._lock = threading.Lock()
        plan(comparisons, "", seed, order)
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            _drop_torn_line(output)
        rows = read_jsonl(output) if output.exists() else []
        self._done = {str(row.get("battle_uuid")) for row in rows}

    def ask(self, voter: str) -> tuple[str, Open, int] | None:
        """The next question: ticket, question, how many are left with it; None when done."""
        with self._lock:
            left = [
                question
                for question in plan(self.comparisons, voter, self.seed, self.order)
                if question.identity not in self._done | self.unreadable.keys()
            ]
            for number, question in enumerate(left):
                first, second = question.comparison.songs
                try:
                    wavs, seconds = equally_loud(
                        *((second, first) if question.swapped else (first, second))
                    )
                except AudioError as error:
                    self.unreadable[question.identity] = f"{first}, {second}: {error}"
                    continue
                ticket = uuid.uuid4().hex
                # A page that was left or loaded anew gives its ticket up.
                self._open = {key: one for key, one in self._open.items() if one.voter != voter}
                self._open[ticket] = Open(voter, question, wavs, seconds)
                return ticket, self._open[ticket], len(left) - number
        return None

    def wav(self, ticket: str, side: int) -> bytes:
        """The sound of a side; KeyError for a ticket that is not open."""
        return self._open[ticket].wavs[side]

    def cast(self, ticket: str, preference: Preference, heard: tuple[float, float]) -> None:
        """Append a vote, on disk when this returns; KeyError for a ticket that is not open.

        Raises:
            DataError: a song was not heard for long enough.
        """
        with self._lock:
            one = self._open[ticket]
            for side, seconds, length in zip("AB", heard, one.seconds, strict=True):
                needed = self.needed(length)
                if not seconds >= needed:
                    raise DataError(f"{side} was heard for {seconds:.1f} s of {needed:.1f} s")
            item = one.question.comparison
            turn = -1 if one.question.swapped else 1
            (audio_a, audio_b), (system_a, system_b) = item.songs[::turn], item.systems[::turn]
            row = {
                "battle_uuid": one.question.identity,
                "prompt": item.prompt,
                "audio_a": str(audio_a),
                "audio_b": str(audio_b),
                "system_a": system_a,
                "system_b": system_b,
                "preference": preference,
                "voter": one.voter,
                "seconds_a": round(heard[0], 2),
                "seconds_b": round(heard[1], 2),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with self.output.open("a", encoding="utf-8") as file:
                file.write(json_line(row))
                file.flush()
                os.fsync(file.fileno())
            self._done.add(one.question.identity)
            del self._open[ticket]

    def needed(self, length: float) -> float:
        """Seconds of a song of this length that must have been heard."""
        return min(self.min_seconds, 0.9 * length)  # players stop a little before the end


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed run left of its last line, so that the next vote starts its own."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
