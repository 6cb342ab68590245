"""One reader of dates: every form that tables have becomes a moment in UTC, or is counted.

Read: ISO dates and times, `20240503`, worded dates (`3 May 2024`, `May 3, 2024 5 pm`), Unix time in
seconds, milliseconds, micro- or nanoseconds, as number or text, and dates and times of Parquet. A
time without a zone is UTC. Not read: a bare year or month, which has no day; numeric dates
(`03/05/2024`), whose order is not known; a moment in the future.

Shape key: N = cells.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from dateutil import parser

Moments = npt.NDArray[np.datetime64[Any]]
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_NUMERIC = re.compile(r"\d{1,2}\s*[/.-]\s*\d{1,2}\s*[/.-]\s*\d")
_ISO = r"\d{4}-\d{2}-\d{2}"
_UNITS = (1.0, 1e3, 1e6, 1e9)  # of a Unix time, per second
_FIRST, _LAST = 631152000.0, 4102444800.0  # 1990 and 2100: Unix times outside are no dates
_FILLS = (datetime(2000, 1, 1), datetime(2001, 2, 2))  # no part of a date in common
_AHEAD = timedelta(days=2)  # clocks differ, and zones


@dataclass(frozen=True)
class Dates:
    """The dates of a column.

    Attributes:
        times: (N,) microseconds in UTC, NaT where there is no date that can be used.
        unread: cells that hold something else than a date, by position.
        future: cells whose date lies in the future, by position.
    """

    times: Moments
    unread: dict[int, str]
    future: dict[int, str]

    def notes(self, what: str) -> list[str]:
        """A sentence for each kind of cell that was not used, with an example."""
        kinds = ((self.unread, "could not be read"), (self.future, "lie in the future"))
        return [
            f"{len(cells)} {what} {words}, as {next(iter(cells.values()))!r}; they count as missing"
            for cells, words in kinds
            if cells
        ]


def read_dates(values: Iterable[Any], *, now: datetime | None = None) -> Dates:
    """The dates of a column.

    Args:
        values: cells of one column.
        now: moments more than two days later are not used; default: the clock's.
    """
    cells = pd.Series(list(values), dtype=object)
    texts = cells.where([isinstance(cell, str) for cell in cells], "").str.strip()
    iso = texts.where(texts.str.match(_ISO))
    found = pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce").dt.tz_localize(None)
    times = found.to_numpy("datetime64[us]").copy()
    latest = _naive((now or datetime.now(UTC)) + _AHEAD)
    unread, future = {}, {}
    for position in np.flatnonzero(np.isnat(times) & cells.notna() & (cells != "")).tolist():
        moment = date_of(cells[position])
        if moment is not None:
            times[position] = _naive(moment)
        elif texts[position] or not isinstance(cells[position], str):
            unread[position] = str(cells[position])
    for position in np.flatnonzero(times > latest).tolist():
        future[position] = str(cells[position])
        times[position] = np.datetime64("NaT")
    return Dates(times, unread, future)


def date_of(value: Any) -> datetime | None:
    """A moment in UTC, or None where the cell holds no date with a day.

    >>> date_of("3 May 2024").isoformat(), date_of(20240503) == date_of(1714694400000)
    ('2024-05-03T00:00:00+00:00', True)
    >>> date_of("2024"), date_of("03/05/2024"), date_of("soon")
    (None, None, None)
    """
    if isinstance(value, datetime):
        return _in_utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    text = str(value).strip()
    if _NUMBER.fullmatch(text) or isinstance(value, float):
        return _of_number(float(text))
    return _of_text(text)


def read_months(values: Iterable[Any], *, now: datetime | None = None) -> tuple[list[str], Dates]:
    """`YYYY-MM` in UTC for each cell of a column, empty text where there is none; and its dates."""
    dates = read_dates(values, now=now)
    return [month.replace("NaT", "") for month in np.datetime_as_string(dates.times, "M")], dates


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _naive(moment: datetime) -> np.datetime64[Any]:
    return np.datetime64(moment.replace(tzinfo=None), "us")


def _of_number(number: float) -> datetime | None:
    """A day as `20240503`, or a Unix time in the unit that puts it between 1990 and 2100."""
    if number.is_integer() and 19000101 <= number <= 21001231:
        try:
            return datetime.strptime(f"{number:.0f}", "%Y%m%d").replace(tzinfo=UTC)
        except ValueError:
            return None
    seconds = (number / unit for unit in _UNITS)
    found = next((value for value in seconds if _FIRST <= value <= _LAST), None)
    return None if found is None else datetime.fromtimestamp(found, UTC)


def _of_text(text: str) -> datetime | None:
    """ISO or worded; None where a part of the date would have to be made up."""
    if _NUMERIC.match(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a zone that dateutil does not know
            readings = {parser.parse(text, default=fill) for fill in _FILLS}
    except (ValueError, OverflowError, Warning):
        return None
    return _in_utc(readings.pop()) if len(readings) == 1 else None
