from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from serving.domain.month import Month

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 11, 1, tzinfo=UTC), Month(2026, 11)),
        (datetime(2026, 11, 1, tzinfo=UTC) - MICROSECOND, Month(2026, 10)),
        (datetime(2026, 11, 1, 8, 59, tzinfo=timezone(timedelta(hours=9))), Month(2026, 10)),
        (datetime(2026, 10, 31, 17, tzinfo=timezone(timedelta(hours=-7))), Month(2026, 11)),
        (datetime(2027, 1, 1, tzinfo=UTC) - MICROSECOND, Month(2026, 12)),
    ],
)
def test_a_moments_month_is_that_of_utc(moment: datetime, expected: Month) -> None:
    assert Month.of(moment) == expected


@pytest.mark.parametrize(
    ("month", "before", "after"),
    [
        (Month(2026, 11), Month(2026, 10), Month(2026, 12)),
        (Month(2026, 12), Month(2026, 11), Month(2027, 1)),
        (Month(2026, 1), Month(2025, 12), Month(2026, 2)),
    ],
)
def test_months_follow_each_other(month: Month, before: Month, after: Month) -> None:
    assert (month.previous, month.next) == (before, after)
    assert before < month < after
    assert month.begin == before.end
    assert Month.of(month.begin) == Month.of(month.end - MICROSECOND) == month


def test_a_leap_years_february_is_longer() -> None:
    lengths = [Month(year, 2).end - Month(year, 2).begin for year in (2026, 2028)]

    assert [length.days for length in lengths] == [28, 29]


@pytest.mark.parametrize("text", ["2026-11", "2000-01", "8999-12"])
def test_a_months_text_is_read_again(text: str) -> None:
    assert str(Month.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026",
        "2026-13",
        "2026-00",
        "0000-01",
        "1999-12",
        "9000-01",
        "9999-12",
        "2026-1",
        "26-11",
        "2026-11-01",
        " 2026-11",
        "2026-11\n",
        "\u0662\u0660\u0662\u0666-\u0661\u0661",
    ],
)
def test_other_texts_are_no_month(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        Month.parse(text)
