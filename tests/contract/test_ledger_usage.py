"""Usage is what the events add up to, by whatever group and in whatever period, on every database."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, text

from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.sql.ledger_tables import DAILY, EVENTS, HOURLY
from serving.domain.money import priced
from serving.domain.month import Month
from serving.domain.usage import GroupBy, UsageEvent, UsageQuery, UsageTotals
from tests.support.sql_ledger import assert_holds, entry, sums_of
from tests.support.usage_events import make_event

NOVEMBER = Month(2026, 11)


@pytest.mark.parametrize("group_by", get_args(GroupBy))
async def test_nothing_used_is_no_row_but_a_total_of_zeros(ledger: SqlLedger, group_by: GroupBy) -> None:
    rows = await ledger.usage(UsageQuery(NOVEMBER.begin, NOVEMBER.end, group_by))

    assert rows == ([UsageTotals("", 0, 0, 0, 0, 0, 0)] if group_by == "total" else [])
    assert await ledger.month_totals(NOVEMBER) == {}


EVENTS_OF_ALL_KINDS = st.builds(
    make_event,
    request_id=st.uuids().map(str),
    key_id=st.sampled_from(["key_1", "key_2"]),
    user=st.sampled_from(["ada", "Éva"]),
    tier=st.sampled_from(["pro", "free"]),
    deployment=st.sampled_from(["shapes", "other"]),
    pictures=st.integers(1, 100),
    pixels=st.integers(0, 10**9),
    received_bytes=st.integers(0, 10**9),
    inference_microseconds=st.integers(0, 10**9),
    price_micros_per_1000=st.sampled_from([0, 1, 500_000]),
    price_micros_per_month=st.sampled_from([0, 10]),
    admitted_at=st.datetimes(
        datetime(2026, 10, 30),
        datetime(2026, 11, 3),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9))]),
    ),
)
HOURS = st.integers(0, 24 * 6).map(lambda hours: datetime(2026, 10, 29, tzinfo=UTC) + timedelta(hours=hours))


def is_asked_for(event: UsageEvent, query: UsageQuery) -> bool:
    return (
        query.begin <= event.admitted_at < query.end
        and query.key_id in (None, event.key_id)
        and query.user in (None, event.user)
        and query.deployment in (None, event.deployment)
    )


def group_of(event: UsageEvent, group_by: GroupBy) -> str:
    moment = event.admitted_at.astimezone(UTC)
    return {
        "total": "",
        "key": event.key_id,
        "user": event.user,
        "deployment": event.deployment,
        "tier": event.tier,
        "day": f"{moment:%Y-%m-%d}",
        "hour": f"{moment:%Y-%m-%dT%H}",
    }[group_by]


def expected_usage(events: Sequence[UsageEvent], query: UsageQuery) -> list[UsageTotals]:
    """Straight from the events, without any roll-up."""
    groups: dict[str, list[UsageEvent]] = {"": []} if query.group_by == "total" else {}
    for event in events:
        if is_asked_for(event, query):
            groups.setdefault(group_of(event, query.group_by), []).append(event)
    totals = []
    for group, members in sorted(groups.items()):
        at_price: Counter[int] = Counter()
        for event in members:
            at_price[event.price_micros_per_1000] += event.pictures
        amount = sum(priced(pictures, price) for price, pictures in at_price.items())
        totals.append(UsageTotals(group, **asdict(sums_of(members)), amount_micros=amount))
    return totals


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.generate],  # to shrink what fails would take longer than a test may
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # every example empties the tables
)
@given(
    batches=st.lists(st.lists(EVENTS_OF_ALL_KINDS, max_size=6), max_size=4),
    period=st.tuples(HOURS, HOURS).filter(lambda pair: pair[0] < pair[1]),
    only=st.fixed_dictionaries(
        {},
        optional={
            "key_id": st.sampled_from(["key_1", "key_3"]),
            "user": st.just("Éva"),
            "deployment": st.just("other"),
        },
    ),
)
async def test_any_usage_is_what_the_events_add_up_to(
    ledger: SqlLedger,
    database: Database,
    batches: list[list[UsageEvent]],
    period: tuple[datetime, datetime],
    only: dict[str, Any],
) -> None:
    async with database.writing() as session:
        for table in (EVENTS, HOURLY, DAILY):
            await session.execute(delete(table))
    for batch in batches:
        await ledger.record([entry(event) for event in batch])
        await ledger.record([entry(event, "2-0") for event in batch])
    events = list(itertools.chain(*batches))

    await assert_holds(ledger, events)
    for group_by in get_args(GroupBy):
        query = UsageQuery(*period, group_by, **only)
        assert await ledger.usage(query) == expected_usage(events, query)
    for month in (NOVEMBER.previous, NOVEMBER):
        by_key = UsageQuery(month.begin, month.end, "key")
        totals = {row.group: row.pictures for row in expected_usage(events, by_key)}
        assert await ledger.month_totals(month) == totals


async def test_months_and_days_end_in_utc(ledger: SqlLedger) -> None:
    tokyo = timezone(timedelta(hours=9))
    last = make_event("last", admitted_at=datetime(2026, 12, 1, 8, 59, 59, 999_999, tzinfo=tokyo))
    first = make_event("first", pictures=2, admitted_at=datetime(2026, 12, 1, 9, tzinfo=tokyo))

    await ledger.record([entry(last), entry(first)])

    months = [NOVEMBER, NOVEMBER.next, NOVEMBER.next.next]
    assert [await ledger.month_totals(month) for month in months] == [{"key_1": 1}, {"key_1": 2}, {}]
    days = await ledger.usage(UsageQuery(NOVEMBER.begin, NOVEMBER.next.end, "day"))
    assert [(day.group, day.pictures) for day in days] == [("2026-11-30", 1), ("2026-12-01", 2)]


async def test_only_days_that_are_cut_are_read_by_the_hour(ledger: SqlLedger, database: Database) -> None:
    await ledger.record([entry(make_event(f"req_{hour}", admitted_at=at(hour))) for hour in range(72)])
    async with database.writing() as session:
        await session.execute(text("UPDATE usage_daily SET pictures = 1000 * pictures"))

    async def pictures(begin: int, end: int) -> int:
        return (await ledger.usage(UsageQuery(at(begin), at(end))))[0].pictures

    assert await pictures(0, 72) == 72_000
    assert await pictures(1, 72) == 23 + 48_000
    assert await pictures(1, 71) == 23 + 24_000 + 23
    assert await pictures(1, 47) == 46


def at(hour: int) -> datetime:
    return NOVEMBER.begin + timedelta(hours=hour)
