"""`from`, `to` and `group_by`, as they may be written, and what is asked for where they are left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from serving.api.queries import parsed
from serving.api.usage_queries import (
    MOST_DAYS,
    MOST_DAYS_BY_HOUR,
    InvoiceParameters,
    OwnUsageParameters,
    UsageParameters,
)
from serving.domain.month import Month
from serving.errors import InvalidRequest

NOW = datetime(2026, 11, 21, 13, 30, 5, tzinfo=UTC)


def at(year: int, month: int, day: int, hour: int = 0) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "begin", "end"),
    [
        ({}, at(2026, 11, 1), at(2026, 12, 1)),
        ({"from": "2026-11-20"}, at(2026, 11, 20), at(2026, 12, 1)),
        ({"from": "2026-09-20"}, at(2026, 9, 20), at(2026, 10, 1)),
        ({"to": "2026-11-20"}, at(2026, 11, 1), at(2026, 11, 20)),
        ({"to": "2026-01-01"}, at(2025, 12, 1), at(2026, 1, 1)),
        ({"from": "2025-12-31", "to": "2026-01-02"}, at(2025, 12, 31), at(2026, 1, 2)),
        ({"from": "2026-11-21T13:00:00Z", "to": "2026-11-22"}, at(2026, 11, 21, 13), at(2026, 11, 22)),
        ({"from": "2026-11-21t13:00:00z", "to": "2026-11-22"}, at(2026, 11, 21, 13), at(2026, 11, 22)),
        ({"from": "2026-11-21T01:00:00+02:00", "to": "2026-11-21"}, at(2026, 11, 20, 23), at(2026, 11, 21)),
        ({"from": "2026-11-21T01:30:00+05:30", "to": "2026-11-21"}, at(2026, 11, 20, 20), at(2026, 11, 21)),
        ({"from": "2026-11-20T00:00:00.000Z"}, at(2026, 11, 20), at(2026, 12, 1)),
        ({"from": "2026-11-21T01:30:00.0+05:30"}, at(2026, 11, 20, 20), at(2026, 12, 1)),
        ({"from": "2024-02-29"}, at(2024, 2, 29), at(2024, 3, 1)),
    ],
)
def test_a_period_is_what_is_said_and_else_a_month(
    query: dict[str, str], begin: datetime, end: datetime
) -> None:
    asked = parsed(UsageParameters, QueryParams(query)).query(NOW)
    assert (asked.begin, asked.end) == (begin, end)


@pytest.mark.parametrize(
    "query",
    [
        {"from": ""},
        {"from": "yesterday"},
        {"from": "2026"},
        {"from": "2026-11"},
        {"from": "20261121"},
        {"from": "2026-W47-6"},
        {"from": "2026-11-31"},
        {"from": "2026-11-21T13:00:00"},  # of which zone?
        {"from": "2026-11-21T13:00Z"},
        {"from": "2026-11-21T13:30:00Z"},
        {"from": "2026-11-21T13:00:01Z"},
        {"from": "2026-11-21T13:00:00.5Z"},
        {"from": "2026-11-21T13:00:00.0000001Z"},
        {"from": "2026-11-21T13:00:00.Z"},
        {"from": "2026-11-21T01:00:00+05:30"},  # half past an hour in UTC
        {"from": "2026-11-21T01:00:00 02:00"},  # a plus that was not encoded
        {"from": "2026-11-21T24:00:00Z"},
        {"from": "1999-12-31"},
        {"from": "9999-12-31"},
        {"from": "\u0662\u0660\u0662\u0666-11-21"},
        {"from": "2026-11-21", "to": "2026-11-21"},
        {"from": "2026-11-22", "to": "2026-11-21"},
        {"group_by": "week"},
        {"group_by": ""},
        {"surprise": "1"},
        {"user": ""},
        {"user": "x" * 201},
        {"user": "a\0b"},
        {"key_id": "\0"},
        {"user": " "},
    ],
)
def test_anything_else_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"."):
        parsed(UsageParameters, QueryParams(query)).query(NOW)


def test_nothing_is_asked_twice() -> None:
    with pytest.raises(InvalidRequest, match="more than once"):
        parsed(UsageParameters, QueryParams([("user", "ada"), ("user", "bob")]))


@pytest.mark.parametrize(
    ("group_by", "most_days"), [("total", MOST_DAYS), ("day", MOST_DAYS), ("hour", MOST_DAYS_BY_HOUR)]
)
def test_an_answer_has_a_bound(group_by: str, most_days: int) -> None:
    begin = at(2015, 1, 1)

    def ask(days: int) -> Any:
        end = begin + timedelta(days=days)
        query = {"from": f"{begin:%Y-%m-%d}", "to": f"{end:%Y-%m-%d}", "group_by": group_by}
        return parsed(OwnUsageParameters, QueryParams(query)).query(NOW)

    assert ask(most_days).end - begin == timedelta(days=most_days)
    with pytest.raises(InvalidRequest, match=str(most_days)):
        ask(most_days + 1)


@given(st.text(max_size=40) | st.datetimes().map(datetime.isoformat) | st.dates().map(str))
def test_whatever_is_written_is_a_whole_hour_or_refused(text: str) -> None:
    try:
        asked = parsed(UsageParameters, QueryParams({"from": text})).query(NOW)
    except InvalidRequest:
        return
    assert asked.begin.utcoffset() == timedelta()
    assert (asked.begin.minute, asked.begin.second, asked.begin.microsecond) == (0, 0, 0)
    assert asked.end == Month.of(asked.begin).end


@pytest.mark.parametrize(
    "month", ["", "2026", "2026-13", "2026-1", "0000-01", "9999-12", "november", "2026-11-01"]
)
def test_an_invoice_is_for_a_month(month: str) -> None:
    with pytest.raises(InvalidRequest, match="month"):
        parsed(InvoiceParameters, QueryParams({"month": month}))


def test_which_month_has_to_be_said() -> None:
    assert parsed(InvoiceParameters, QueryParams({"month": "2026-11"})).month == Month(2026, 11)
    with pytest.raises(InvalidRequest, match="month"):
        parsed(InvoiceParameters, QueryParams({}))
