"""Readings of single cells that battle tables write in several ways."""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

VOTES = ("A", "B", "TIE", "BOTH_BAD")
_TRUE = frozenset({"true", "t", "yes", "y", "1", "instrumental"})
_FALSE = frozenset({"false", "f", "no", "n", "0", "vocal"})
_DAY = re.compile(r"(\d{4})-(\d{2})")


def vote_of(value: Any) -> str:
    """One of `VOTES`, or empty text for any other vote.

    >>> vote_of("both bad"), vote_of(" a"), vote_of("left"), vote_of(None)
    ('BOTH_BAD', 'A', '', '')
    """
    text = "" if value is None else str(value).strip().upper().replace("-", "_").replace(" ", "_")
    return text if text in VOTES else ""


def truth(value: Any) -> float:
    """1.0 for yes, 0.0 for no (bool, number or text), NaN for nothing or another text.

    >>> truth(True), truth("False"), truth(1), truth("")
    (1.0, 0.0, 1.0, nan)
    """
    text = "" if value is None else str(value).strip().casefold().removesuffix(".0")
    return 1.0 if text in _TRUE else 0.0 if text in _FALSE else math.nan


def month_of(value: Any) -> str:
    """`YYYY-MM` of a date, ISO text or Unix seconds (as UTC); empty text for anything else.

    >>> month_of("2026-02-28T23:59:59-05:00"), month_of(1767225600), month_of("soon")
    ('2026-02', '2026-01', '')
    """
    if isinstance(value, (datetime.date, datetime.datetime)):
        return f"{value.year:04d}-{value.month:02d}"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        moment = datetime.datetime.fromtimestamp(value, tz=datetime.timezone.utc)
        return f"{moment.year:04d}-{moment.month:02d}"
    found = _DAY.match(str(value).strip()) if value is not None else None
    return f"{found[1]}-{found[2]}" if found else ""


def same_text(value: Any) -> str:
    """Text with runs of white space as one space, in one case: equal prompts compare equal."""
    return "" if value is None else " ".join(str(value).split()).casefold()
