"""Readings of single cells that battle tables write in several ways."""

from __future__ import annotations

import math
from typing import Any

VOTES = ("A", "B", "TIE", "BOTH_BAD")
_TRUE = frozenset({"true", "t", "yes", "y", "1", "instrumental"})
_FALSE = frozenset({"false", "f", "no", "n", "0", "vocal"})


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


def same_text(value: Any) -> str:
    """Text with runs of white space as one space, in one case: equal prompts compare equal."""
    return "" if value is None else " ".join(str(value).split()).casefold()
