from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from apex_reward.files.dates import date_of, read_dates, read_months

DAY = datetime(2024, 5, 3, tzinfo=UTC)
SECONDS = 1714694400  # `date -u -d 2024-05-03 +%s`


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-03",
        " 2024-05-03T00:00:00Z ",
        "2024-05-03T02:00:00+02:00",
        "2024-05-02 20:00:00-0400",
        20240503,
        20240503.0,
        "20240503",
        SECONDS,
        str(SECONDS),
        float(SECONDS),
        1_000 * SECONDS,
        str(1_000 * SECONDS),
        1_000_000 * SECONDS,
        1_000_000_000 * SECONDS,
        "3 May 2024",
        "May 3, 2024",
        "3rd of May 2024",
        "Fri, 03 May 2024 00:00:00 GMT",
        date(2024, 5, 3),
        datetime(2024, 5, 3),
        datetime(2024, 5, 3, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_one_day_in_many_forms(value):
    assert date_of(value) == DAY
    assert date_of(value).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value",
    [2024, "2024", 2024.0, "2024-05", "May 2024", "soon", "", None, float("nan"), True, 20241399,
     0, -5, 12, "12:30", "Monday", "03/05/2024", "2024-13-01", "3 May 2024 ZZT", 1e30, []],
)  # fmt: skip
def test_what_has_no_day_is_no_date(value):
    assert date_of(value) is None


def test_numeric_dates_are_not_read():
    numeric = ["03/05/2024", "13.05.2024", "5-13-24", "13/05/2024 12:00"]
    dates = read_dates([*numeric, "2024-05-05"], now=DAY + timedelta(99))
    assert dates.times.tolist() == [None] * 4 + [datetime(2024, 5, 5)]
    assert dates.unread == dict(enumerate(numeric))


def test_a_date_still_to_come_is_not_used():
    dates = read_dates(["2099-01-01", "2024-05-04", "soon", None, ""], now=DAY)
    assert dates.times.tolist() == [None, datetime(2024, 5, 4), None, None, None]
    assert dates.future == {0: "2099-01-01"}
    assert dates.unread == {2: "soon"}
    assert dates.notes("dates") == [
        "1 dates could not be read, as 'soon'; they count as missing",
        "1 dates lie in the future, as '2099-01-01'; they count as missing",
    ]


def test_months_are_utc_s():
    cells = ["2026-02-28T23:59:59-05:00", datetime(2026, 3, 1, 4, 59, 59, tzinfo=UTC)]
    cells += [1767225599, 1767225600000, "2026-02", "2026", None, "March", "2026-13", "2099-01"]
    months, dates = read_months(cells, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert months == ["2026-03", "2026-03", "2025-12", "2026-01", "", "", "", "", "", ""]
    assert dates.unread == {4: "2026-02", 5: "2026", 7: "March", 8: "2026-13", 9: "2099-01"}
