"""The votes: who is asked what, on which side, and the file that grows by a row per vote."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apex_reward.errors import AudioError, DataError, UsageError
from apex_reward.files.tables import json_line, read_jsonl
from apex_reward.listen.informative import expected_gain, features_of
from apex_reward.listen.sound import Wav, equally_loud
from apex_reward.listen.sources import Comparison

Preference = Literal["A", "B", "TIE", "BOTH_BAD"]
Order = Literal["random", "informative"]
BETWEEN = 5  # questions between a question and its repeat, where there are as many
FIRST_WON = {"A": 1.0, "B": 0.0, "TIE": 0.5, "BOTH_BAD": 0.5}


@dataclass(frozen=True)
class Question:
    """One comparison as a voter meets it: `swapped` puts the second song on side A.

    `repeat` is a question that the voter answered before, with sides exchanged.
    """

    identity: str
    comparison: Comparison
    swapped: bool
    repeat: bool


@dataclass(frozen=True)
class Open:
    """A question on somebody's page: WAV files of A and B, and their lengths in seconds."""

    voter: str
    question: Question
    wavs: tuple[Wav, Wav]
    seconds: tuple[float, float]


def side(seed: int, voter: str, systems: tuple[str, str], rank: int) -> bool:
    """Whether a voter's question number `rank` (from 0) of these systems is swapped.

    Sides come in twos per pair of systems, so that they stay even wherever a voter stops.
    """
    first = random.Random(f"{seed}/{voter}/{systems}/{rank // 2}").random() < 0.5
    return first if rank % 2 == 0 else not first


class Session:
    """Voting on `comparisons` into the file `output`; resumes from the votes that are there.

    All that is asked follows from the seed, the voter's name and the votes in the file.

    Args:
        order: `random`, per voter, or `informative`: what teaches most from everybody's votes.
        min_seconds: of each song that must have been heard; a shorter song, to its end.
        repeats: share of a voter's questions that are asked once more, sides exchanged.

    Raises:
        UsageError: `informative` with nothing to learn: no score, and one pair of systems.
    """

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        output: Path,
        *,
        seed: int = 0,
        order: Order = "random",
        min_seconds: float = 3.0,
        repeats: float = 0.1,
    ) -> None:
        self.comparisons, self.output, self.seed, self.order = comparisons, output, seed, order
        self.min_seconds, self.repeats = min_seconds, repeats
        self.unreadable: dict[str, str] = {}
        self._open: dict[str, Open] = {}
        self._lock = threading.Lock()
        self._features = features_of(comparisons)
        if order == "informative" and not self._features.shape[1]:
            raise UsageError(
                "--order informative needs something to learn: columns with scores of both songs, "
                "or more than two systems"
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            _drop_torn_line(output)
        rows = read_jsonl(output) if output.exists() else []
        self._votes = {str(row.get("battle_uuid")): row for row in rows}

    @property
    def votes(self) -> list[dict[str, Any]]:
        """The rows of the file."""
        return list(self._votes.values())

    def ask(self, voter: str) -> tuple[str, Open, int] | None:
        """The next question: ticket, question, how many are left with it; None when done."""
        with self._lock:
            while (found := self._next(voter)) is not None:
                question, left = found
                first, second = question.comparison.songs
                try:
                    wavs, seconds = equally_loud(
                        *((second, first) if question.swapped else (first, second))
                    )
                except AudioError as error:
                    self.unreadable[question.comparison.identity] = f"{first}, {second}: {error}"
                    continue
                ticket = uuid.uuid4().hex
                # A page that was left or loaded anew gives its ticket up.
                self._open = {key: one for key, one in self._open.items() if one.voter != voter}
                self._open[ticket] = Open(voter, question, wavs, seconds)
                return ticket, self._open[ticket], left
        return None

    def finished(self, voter: str) -> bool:
        """Whether a voter has answered everything."""
        with self._lock:
            return bool(voter) and self._next(voter) is None

    def _next(self, voter: str) -> tuple[Question, int] | None:
        items = [item for item in self.comparisons if item.identity not in self.unreadable]
        once = {_identity(item, voter): item for item in items}
        again = {_identity(item, voter, repeat=True): item for item in items}
        answered = [key for key in self._votes if key in once]  # in the order of the votes
        repeated = [key for key in self._votes if key in again]
        new = [item for key, item in once.items() if key not in self._votes]
        # A hundredth, as 0.1 * 30 is a little less than 3.
        due = int(self.repeats * len(answered) + 0.01) - len(repeated)
        left = len(new) + max(0, int(self.repeats * len(once) + 0.01) - len(repeated))
        if due > 0:
            return self._repeat(voter, once, answered, len(repeated)), left
        if not new:
            return None
        item = self._chosen(new, voter)
        rank = sum(once[key].systems == item.systems for key in answered)
        swapped = side(self.seed, voter, item.systems, rank)
        return Question(_identity(item, voter), item, swapped, repeat=False), left

    def _repeat(
        self, voter: str, once: dict[str, Comparison], answered: list[str], number: int
    ) -> Question:
        """One that was answered before, not among the latest where that can be."""
        open_ = [
            key for key in answered if _identity(once[key], voter, repeat=True) not in self._votes
        ]
        old = [key for key in open_ if key in answered[:-BETWEEN]] or open_
        key = random.Random(f"{self.seed}/{voter}/repeat {number}").choice(old)
        item, vote = once[key], self._votes[key]
        swapped = str(vote.get("audio_a")) == str(item.songs[1])
        return Question(_identity(item, voter, repeat=True), item, not swapped, repeat=True)

    def _chosen(self, new: list[Comparison], voter: str) -> Comparison:
        shuffled = list(self.comparisons)
        random.Random(f"{self.seed}/{voter}").shuffle(shuffled)
        rank = {item.identity: number for number, item in enumerate(shuffled)}
        if self.order == "random":
            return min(new, key=lambda item: rank[item.identity])
        row = {item.identity: number for number, item in enumerate(self.comparisons)}
        gain = expected_gain(self._features, *self._outcomes(row))
        # Rounded, so that what teaches the same comes in the voter's own order.
        return min(new, key=lambda i: (-round(float(gain[row[i.identity]]), 9), rank[i.identity]))

    def _outcomes(self, row: dict[str, int]) -> tuple[Any, Any]:
        """Rows that anybody voted on, and how: 1 for a comparison's first song."""
        voted, outcome = [], []
        for vote in self._votes.values():
            number = row.get(str(vote.get("comparison")))
            if number is None:
                continue
            won = FIRST_WON[str(vote["preference"])]
            first_is_a = str(vote["audio_a"]) == str(self.comparisons[number].songs[0])
            voted.append(number)
            outcome.append(won if first_is_a else 1 - won)
        return np.array(voted, np.intp), np.array(outcome, np.float64)

    def wav(self, ticket: str, side: int) -> Wav:
        """The sound of a side; KeyError for a ticket that is not open."""
        return self._open[ticket].wavs[side]

    def cast(self, ticket: str, preference: Preference, heard: tuple[float, float]) -> None:
        """Append a vote, on disk when this returns; KeyError for a ticket that is not open.

        Beside the columns of a battle a row holds `comparison` (the battle's uuid in the table, or
        one of prompt and songs), `swapped` (A is the table's B) and `repeat`.

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
                "comparison": item.identity,
                "swapped": one.question.swapped != item.turned,
                "repeat": one.question.repeat,
            }
            with self.output.open("a", encoding="utf-8") as file:
                file.write(json_line(row))
                file.flush()
                os.fsync(file.fileno())
            self._votes[one.question.identity] = row
            del self._open[ticket]

    def needed(self, length: float) -> float:
        """Seconds of a song of this length that must have been heard."""
        return min(self.min_seconds, 0.9 * length)  # players stop a little before the end


def _identity(item: Comparison, voter: str, *, repeat: bool = False) -> str:
    """A vote's uuid, of songs, prompt and voter: the votes of two voters both count."""
    parts = [item.prompt, *sorted(map(str, item.songs)), voter, *(["repeat"] if repeat else [])]
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\0".join(parts)))


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed run left of its last line, so that the next vote starts its own."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
