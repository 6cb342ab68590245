"""The text of table cells, the same in HTML, in Markdown and on a terminal."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

NOTHING = "-"
# Digits with the signs between them: `0.1 / 0.2`, `[0.512, 0.561]`, `714.98 ± 1.41`, `3:05`.
_NUMBERS = re.compile(r"[\[(]?[-+]?[.\d][-+.,:;%±/()\[\]\d\s]*|[-+]?(?:\d[.\d]*e[-+]?\d+|inf)")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Scripts and emoji need these joiners. They do not move or hide text.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Player:
    """A song in a table: a page plays it, Markdown and a terminal show its label.

    Attributes:
        label: the text in the cell, usually the path as the user wrote it.
        source: the address for the page; None where the file does not exist.
        about: the player's name for screen readers, such as `chosen, prompt 3`.
    """

    label: str
    source: str | None
    about: str = ""

    def __str__(self) -> str:
        return self.label


def cell(value: object, decimals: int = 3) -> str:
    """The text of one cell.

    None and NaN become a dash. A float has `decimals` decimals, or one digit and an exponent where
    the decimals would show zero. Lists are joined by commas. Control characters are escaped.

    >>> [cell(value) for value in (None, 1.23456, 0.00002, 7, True, ["dc", "silent"])]
    ['-', '1.235', '2e-05', '7', 'yes', 'dc, silent']
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return _decimal(float(value), decimals)
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(cell(item, decimals) for item in value)
    return visible(str(value))


def counted(number: int, noun: str) -> str:
    """A number and its noun, which gets an `s` unless the number is one.

    >>> counted(1, "song"), counted(1200, "song")
    ('1 song', '1,200 songs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _decimal(value: float, decimals: int) -> str:
    if math.isnan(value):
        return NOTHING
    if 0 < abs(value) < 0.5 * 10**-decimals:
        return f"{value:.0e}"
    if math.isfinite(value) and abs(value) >= 1e9:
        return f"{value:.{decimals}e}"
    return f"{value + 0.0:.{decimals}f}"  # a negative zero becomes zero


def visible(text: str) -> str:
    r"""Text with control characters, direction marks and lone surrogates as escapes.

    >>> print(visible("a\x1b[31mred\u202e"))
    a\x1b[31mred\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in _UNSEEN and c not in _JOINERS
        else c
        for c in text
    )


def middle_cut(text: str, length: int) -> str:
    """Text of at most `length` characters: a longer text loses its middle and keeps its ends.

    >>> middle_cut("a long name of a song.wav", 15)
    'a long …ong.wav'
    """
    if len(text) <= length:
        return text
    keep = max(0, length - 1)
    tail = keep // 2
    return text[: keep - tail] + "…" + (text[-tail:] if tail else "")


def is_numeric(values: Iterable[object]) -> bool:
    """Whether a column holds only numbers and dashes, and at least one number."""
    texts = [cell(value) for value in values if not isinstance(value, bool)]
    known = [text for text in texts if text != NOTHING]
    return bool(known) and all(
        _NUMBERS.fullmatch(text) and (text.endswith("inf") or any(map(str.isdigit, text)))
        for text in known
    )
