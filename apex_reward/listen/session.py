"""The votes: who is asked what, on which side, and the file that grows by a row per vote."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apex_reward.errors import AudioError, DataError, UsageError
from apex_reward.files.tables import json_line, read_jsonl
from apex_reward.listen.informative import expected_gain, features_of
from apex_reward.listen.sound import Sounds
from apex_reward.listen.sources import Comparison, identity_of

Preference = Literal["A", "B", "TIE", "BOTH_BAD"]
Order = Literal["random", "informative"]
BETWEEN = 5  # at least as many questions between a question and its repeat, where possible
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
    """A question that a page shows, and the lengths of A and B in seconds."""

    voter: str
    page: str
    question: Question
    seconds: tuple[float, float]


def side(seed: int, voter: str, systems: tuple[str, str], rank: int) -> bool:
    """Whether a voter's question number `rank` (from 0) of these systems is swapped.

    Sides come in twos per pair of systems, so that they stay even wherever a voter stops.
    """
    first = random.Random(f"{seed}/{voter}/{systems}/{rank // 2}").random() < 0.5
    return first if rank % 2 == 0 else not first


class Session:
    """Voting on `comparisons` into the file `output`; it resumes from the votes in that file.

    The questions follow from the seed, the voter's name and the votes in the file. Several people
    can vote under one name, each on a page of their own: no question is open on two pages while
    another one is left, and a question counts once for a name.

    Args:
        order: `random` per voter, or `informative`: first what the votes so far leave open.
        min_seconds: listening time of each song before a vote counts; a shorter song, to its end.
        repeats: share of a voter's questions that are asked again with their sides exchanged.

    Attributes:
        sounds: the songs of the open questions.
        unreadable: why a comparison is not asked, by its identity.

    Raises:
        UsageError: `informative` without any score and with one pair of systems only.
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
        self.sounds = Sounds()
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
        rows = []
        if output.exists():
            # What a killed run left of its last line goes, so that the next vote starts its own.
            os.truncate(output, output.read_bytes().rfind(b"\n") + 1)
            rows = read_jsonl(output)
        self._votes = {str(row.get("battle_uuid")): row for row in rows}

    @property
    def votes(self) -> list[dict[str, Any]]:
        """The rows of the file."""
        return list(self._votes.values())

    def ask(self, voter: str, page: str = "") -> tuple[str, Open, int] | None:
        """The next question: ticket, question, number of questions left with it; None when done.

        Args:
            page: an identity of the voter's page. A page has one open question; a new one ends it.
        """
        with self._lock:
            open_ = self._open.items()
            self._open = {key: q for key, q in open_ if (q.voter, q.page) != (voter, page)}
            while (found := self._next(voter)) is not None:
                question, left = found
                songs = question.comparison.songs[:: -1 if question.swapped else 1]
                try:
                    ticket, seconds = self.sounds.add(*songs)
                except AudioError as error:
                    names = ", ".join(map(str, question.comparison.songs))
                    self.unreadable[question.comparison.identity] = f"{names}: {error}"
                    continue
                self._open[ticket] = Open(voter, page, question, seconds)
                return ticket, self._open[ticket], left
        return None

    def questions(self) -> tuple[int, int]:
        """How many pairs a voter is asked, and how many of them again."""
        pairs = len(self.comparisons) - len(self.unreadable)
        return pairs, _share(self.repeats, pairs)

    def _progress(
        self, voter: str
    ) -> tuple[dict[str, Comparison], list[str], int, list[Comparison]]:
        """Comparisons by vote, votes in their order, repeats that are due, comparisons without."""
        items = [item for item in self.comparisons if item.identity not in self.unreadable]
        once = {_identity(item, voter): item for item in items}
        again = {_identity(item, voter, repeat=True) for item in items}
        answered = [key for key in self._votes if key in once]
        due = _share(self.repeats, len(answered)) - len(again & self._votes.keys())
        return once, answered, due, [item for key, item in once.items() if key not in self._votes]

    def _next(self, voter: str) -> tuple[Question, int] | None:
        once, answered, due, new = self._progress(voter)
        others = [one.question for one in self._open.values() if one.voter == voter]
        to_come = _share(self.repeats, len(once)) - _share(self.repeats, len(answered))
        left = len(new) + max(0, due + to_come)
        # A page that was left keeps its question; at the end another page shows it too.
        if due > sum(question.repeat for question in others) or (due > 0 and not new):
            return self._repeat(voter, once, answered, others), left
        if not new:
            return None
        shown = {question.identity for question in others}
        free = [item for item in new if _identity(item, voter) not in shown] or new
        item = self._chosen(free, voter)
        asked = [once[key] for key in answered] + [q.comparison for q in others if not q.repeat]
        rank = sum(before.systems == item.systems for before in asked)
        swapped = side(self.seed, voter, item.systems, rank)
        return Question(_identity(item, voter), item, swapped, repeat=False), left

    def _repeat(
        self, voter: str, once: dict[str, Comparison], answered: list[str], others: list[Question]
    ) -> Question:
        """A question that was answered before, not one of the latest where that is possible."""
        again = {key: _identity(once[key], voter, repeat=True) for key in answered}
        taken = self._votes.keys() | {question.identity for question in others}
        free = [key for key in answered if again[key] not in taken]
        free = free or [key for key in answered if again[key] not in self._votes]
        old = [key for key in free if key in answered[:-BETWEEN]] or free
        number = sum(identity in taken for identity in again.values())
        key = random.Random(f"{self.seed}/{voter}/repeat {number}").choice(old)
        was_swapped = str(self._votes[key].get("audio_a")) == str(once[key].songs[1])
        return Question(again[key], once[key], not was_swapped, repeat=True)

    def _chosen(self, new: list[Comparison], voter: str) -> Comparison:
        """The next comparison of a voter: in their own random order, or what teaches most."""
        shuffled = list(self.comparisons)
        random.Random(f"{self.seed}/{voter}").shuffle(shuffled)
        rank = {item.identity: number for number, item in enumerate(shuffled)}
        if self.order == "random":
            return min(new, key=lambda item: rank[item.identity])
        place = {item.identity: number for number, item in enumerate(self.comparisons)}
        voted, outcome = [], []  # of anybody; 1 where a comparison's first song was preferred
        for vote in self._votes.values():
            number = place.get(str(vote.get("comparison")))
            if number is not None:
                won = FIRST_WON[str(vote["preference"])]
                first_is_a = str(vote["audio_a"]) == str(self.comparisons[number].songs[0])
                voted.append(number)
                outcome.append(won if first_is_a else 1 - won)
        # Rounded, so that what teaches the same comes in the voter's own order.
        gain = expected_gain(self._features, np.array(voted, np.intp), np.array(outcome)).round(9)
        return min(new, key=lambda item: (-gain[place[item.identity]], rank[item.identity]))

    def cast(self, ticket: str, preference: Preference, heard: tuple[float, float]) -> None:
        """Append a vote, on disk when this returns; KeyError for a ticket that is not open.

        Beside the columns of a battle a row holds `comparison` (the battle's uuid in the table, or
        one of prompt and songs), `swapped` (A is the table's B) and `repeat`.

        Raises:
            DataError: a song was not heard for long enough.
            KeyError: the ticket is not open, or another page has answered its question.
        """
        with self._lock:
            one = self._open[ticket]
            if one.question.identity in self._votes:
                del self._open[ticket]
                raise KeyError(ticket)
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


def _share(share: float, count: int) -> int:
    """A share of a number, rounded down. A hundredth is added, as 0.1 * 30 is less than 3."""
    return int(share * count + 0.01)


def _identity(item: Comparison, voter: str, *, repeat: bool = False) -> str:
    """A vote's uuid, of songs, prompt and voter: the votes of two voters both count."""
    return identity_of(item.prompt, item.songs, voter, *(["repeat"] if repeat else []))
