from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from serving.domain.month import Month
from serving.domain.usage import Invoice, InvoiceLine, UsageQuery

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
INDIA = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (NOON, NOON),
        (NOON, NOON - timedelta(hours=1)),
        (NOON + timedelta(minutes=30), NOON + timedelta(hours=1)),
        (NOON, NOON + timedelta(hours=1, microseconds=1)),
        (NOON.replace(tzinfo=INDIA), NOON + timedelta(hours=1)),  # a whole hour there, and none in UTC
        (NOON.replace(tzinfo=None), NOON + timedelta(hours=1)),
    ],
)
def test_a_period_that_is_none_or_cuts_an_hour_is_refused(begin: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match=r"whole hour|period"):
        UsageQuery(begin, end)


def test_whole_hours_in_utc_are_a_period_wherever_they_are_written() -> None:
    query = UsageQuery(NOON.replace(minute=30, tzinfo=INDIA), NOON)

    assert query.end - query.begin == timedelta(hours=5)


def test_an_invoices_total_is_the_sum_of_its_lines_as_printed() -> None:
    lines = tuple(
        InvoiceLine("ada", "key_1", "pro", "shapes", "pictures", 1, 500, amount) for amount in (0, 1, 2)
    )

    assert Invoice(Month(2026, 11), lines).total_micros == 3
    assert Invoice(Month(2026, 11), ()).total_micros == 0
