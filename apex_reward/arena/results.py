"""What the arena finds, as typed records; `to_json` makes `metrics.json` of them.

A figure that is not defined is NaN and becomes null. A field whose default is None is a key that
is there only where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from apex_reward.arena.intervals import NO_INTERVAL, Direction, Interval
from apex_reward.files.tables import json_ready

Cells = Mapping[str, float | None]


@dataclass(frozen=True)
class Figures:
    """How a score did on some battles; the fields are described in `arena.agreement`."""

    n: int
    accuracy: float
    accuracy_ci95: Interval
    auc: float | None = None
    auc_ci95: Interval | None = None
    direction: Direction | None = None
    p_value: float | None = None
    accuracy_ci95_by_prompt: Interval | None = None
    auc_ci95_by_prompt: Interval | None = None


NO_FIGURES = Figures(0, math.nan, NO_INTERVAL)


@dataclass(frozen=True)
class Bin:
    """Battles of about one probability: mean probability and share that A won."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """The expected calibration error and the curve behind it."""

    ece: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class Disagreement:
    """A battle whose vote a score found unlikely."""

    battle_uuid: str
    preference: str
    score_a: float
    score_b: float
    audio_a: str | None
    audio_b: str | None
    system_a: str | None
    system_b: str | None
    prompt: str

    def side(self, letter: str) -> tuple[str | None, str | None]:
        """Audio and system of side `a` or `b`."""
        return (self.audio_a, self.system_a) if letter == "a" else (self.audio_b, self.system_b)


@dataclass(frozen=True)
class Overall(Figures):
    """Figures of all battles, with what is measured on all of them only."""

    ece: float = math.nan
    reliability: tuple[Bin, ...] = ()
    disagreements: tuple[Disagreement, ...] | None = None
    auc_within_system_pairs: float | None = None
    auc_within_system_pairs_ci95: Interval | None = None


@dataclass(frozen=True)
class Strata:
    """Figures of all battles and of every stratum that holds any."""

    overall: Overall
    others: Mapping[str, Figures]

    def items(self) -> Iterator[tuple[str, Figures]]:
        """Stratum and figures, `overall` first."""
        yield "overall", self.overall
        yield from self.others.items()


@dataclass(frozen=True)
class McNemar:
    """Battles that only one of two scores got right, and the exact two-sided p."""

    n: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Baselines:
    """What the position alone and the systems alone predict."""

    position_a: Figures
    system_only: Figures


@dataclass(frozen=True)
class ArenaSettings:
    """What the figures were made with."""

    bootstrap: int
    seed: int
    folds: int | None = None
    l2: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Version of the package, the battles' name, and what made each table of scores."""

    apex_reward: str
    battles: str
    made_by: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Table3:
    """The paper's protocol in both forms: section -> row -> cells."""

    n: int
    a_won: int
    instrumental: int
    vocal: int
    folds: int
    seed: int
    grouped_by: str
    notes: tuple[str, ...]
    published: Mapping[str, Mapping[str, Cells]]
    honest: Mapping[str, Mapping[str, Cells]]
    rules_line: str


@dataclass(frozen=True)
class Result:
    """What every command of the arena says: the data, what was left out, the settings."""

    n_battles: int
    dropped: Mapping[str, int]
    notes: tuple[str, ...]
    settings: ArenaSettings
    provenance: Provenance | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class AgreementResult(Result):
    """Agreement of every score with the votes."""

    n_decided: int
    missing_by_score: Mapping[str, int]
    scores: Mapping[str, Strata]
    baselines: Baselines
    mcnemar: Mapping[str, McNemar]
    versus_systems: Mapping[str, McNemar]
    voters: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    classifiers: Table3 | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class CurvePoint:
    """Mean accuracy over the repeats of a draw, its standard deviation, and each repeat's."""

    accuracy: float
    std: float
    repeats: tuple[float, ...]


@dataclass(frozen=True)
class CurveRow:
    """Accuracy on the test battles after so many anchor votes."""

    anchors: int
    uncalibrated: CurvePoint
    calibrated: CurvePoint
    system_only: CurvePoint

    def points(self) -> dict[str, CurvePoint]:
        """What is compared -> its point."""
        return {name: value for name, value in vars(self).items() if name != "anchors"}


@dataclass(frozen=True)
class HeldOut:
    """Held-out figures of a calibration and what was fitted on all battles."""

    scores: tuple[str, ...]
    uncalibrated: Strata
    calibrated: Strata
    songs_only: Strata
    mcnemar: Mapping[str, McNemar]
    slope: Mapping[str, float]
    bias: Mapping[str, float]
    l2: float
    grouped_by: str
    folds: int
    adds_to_systems: bool | None
    verdict: str
    system_only: Strata | None = None
    learning_curve: tuple[CurveRow, ...] | None = None

    def compared(self) -> dict[str, Strata]:
        """What is compared -> its figures, the uncalibrated score first."""
        names = ("uncalibrated", "calibrated", "songs_only", "system_only")
        found = {name: getattr(self, name) for name in names}
        return {name: strata for name, strata in found.items() if strata is not None}


@dataclass(frozen=True)
class CalibrationResult(Result):
    """What `arena calibrate` found."""

    n_decided: int
    calibration: HeldOut


@dataclass(frozen=True)
class BoardRow:
    """A system's Arena score with its interval, and the battles it fought."""

    system: str
    score: float
    lower: float
    upper: float
    battles: int


@dataclass(frozen=True)
class ScoreBoard:
    """The leaderboard of one score, and how its order agrees with the votes'."""

    n: int
    leaderboard: tuple[BoardRow, ...]
    rank_correlation: float
    rank_correlation_ci95: Interval


@dataclass(frozen=True)
class Leaderboards(Result):
    """The leaderboard of the votes and of every named score."""

    n_used: int
    leaderboard: tuple[BoardRow, ...]
    scores: Mapping[str, ScoreBoard]


def defined(interval: Interval | None) -> Interval | None:
    """An interval, or None where it is not there or not defined."""
    return None if interval is None or any(math.isnan(bound) for bound in interval) else interval


def to_json(value: Any) -> Any:
    """Records as dicts, NaN as None; an interval without bounds is None."""
    if isinstance(value, Strata):
        return {name: to_json(entry) for name, entry in value.items()}
    if is_dataclass(value):
        found = ((part, getattr(value, part.name)) for part in fields(value))
        return {
            part.name: to_json(item)
            for part, item in found
            if not (item is None and part.default is None)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(b, float) for b in value):
        return None if defined(value) is None else list(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    return json_ready(value)
