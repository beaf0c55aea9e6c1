"""The ledger bills each event once, adds up exactly, and says of a month what is owed, on every database."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text

from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerCounts, LedgerEntry, Recorded, SqlLedger, Sums
from serving.adapters.sql.ledger_tables import DAILY, EVENTS, HOURLY
from serving.domain.money import priced
from serving.domain.month import Month
from serving.domain.usage import GroupBy, UsageEvent, UsageQuery, UsageTotals
from serving.errors import BackendUnavailable
from tests.support.keys import TIERS
from tests.support.usage_events import EVENT, make_event

NOVEMBER = Month(2026, 11)
PROJECT = Path(__file__).parents[2]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    return SqlLedger(database, TIERS)


def entry(event: UsageEvent, stream_entry: str = "1-0") -> LedgerEntry:
    return LedgerEntry(event, stream_entry)


def sums_of(events: Sequence[UsageEvent]) -> Sums:
    return Sums(
        len(events),
        sum(event.pictures for event in events),
        sum(event.pixels for event in events),
        sum(event.received_bytes for event in events),
        sum(event.inference_microseconds for event in events),
    )


async def assert_holds(ledger: SqlLedger, events: Sequence[UsageEvent]) -> None:
    sums = sums_of(events)
    assert await ledger.counts() == LedgerCounts(sums, sums, sums)


def month_by(group_by: GroupBy, **only: Any) -> UsageQuery:
    return UsageQuery(NOVEMBER.begin, NOVEMBER.end, group_by, **only)


async def test_an_empty_ledger_has_nothing(ledger: SqlLedger) -> None:
    assert await ledger.record([]) == []
    await assert_holds(ledger, [])
    assert await ledger.month_totals(NOVEMBER) == {}
    assert await ledger.entry_ids(["req_1"]) == {}
    assert await ledger.usage(month_by("total")) == [UsageTotals("", 0, 0, 0, 0, 0, 0)]
    for group_by in get_args(GroupBy)[1:]:
        assert await ledger.usage(month_by(group_by)) == []
    invoice = await ledger.invoice(NOVEMBER)
    assert (invoice.month, invoice.lines, invoice.total_micros) == (NOVEMBER, (), 0)


@pytest.mark.parametrize(
    "event",
    [
        EVENT,
        replace(EVENT, model_version=None, user="Ада «Ω» 🦉", deployment="a'b;--"),
        replace(EVENT, pixels=2**40, received_bytes=2**40, price_micros_per_1000=10**15),
        replace(EVENT, admitted_at=datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)),
        replace(EVENT, request_id="r" * 255, trace_id="t" * 255),
    ],
    ids=["plain", "names", "large", "last moment", "long"],
)
async def test_an_event_is_kept_as_it_was(ledger: SqlLedger, database: Database, event: UsageEvent) -> None:
    assert await ledger.record([entry(event, "1763726400000-7")]) == ["new"]

    async with database.reading() as session:
        row = (await session.execute(select(EVENTS))).one()._asdict()
    assert row.pop("stream_entry") == "1763726400000-7"
    assert UsageEvent(**row) == event
    await assert_holds(ledger, [event])


@pytest.mark.parametrize(
    ("batches", "verdicts"),
    [
        ([[]], [[]]),
        ([["a:1"]], [["new"]]),
        ([["a:1"], ["a:1"]], [["new"], ["redelivered"]]),  # its consumer died before it acknowledged
        ([["a:1"], ["a:2"]], [["new"], ["duplicate"]]),  # a journal was replayed twice
        ([["a:1", "a:1"]], [["new", "redelivered"]]),
        ([["a:1", "a:2"]], [["new", "duplicate"]]),
        ([["a:1"], ["a:2", "a:1", "a:2"]], [["new"], ["duplicate", "redelivered", "duplicate"]]),
        ([["b:2", "a:1", "c:3"]], [["new"] * 3]),  # in the order given
        ([["b:1"], ["c:3", "b:1", "a:2"]], [["new"], ["new", "redelivered", "new"]]),
    ],
)
async def test_an_event_is_billed_once_however_often_it_comes(
    ledger: SqlLedger, batches: list[list[str]], verdicts: list[list[Recorded]]
) -> None:
    given_ = [[LedgerEntry(make_event(each[0]), each[2:]) for each in batch] for batch in batches]

    assert [await ledger.record(batch) for batch in given_] == verdicts

    events = {each.event.request_id: each.event for batch in given_ for each in batch}
    await assert_holds(ledger, list(events.values()))


async def test_one_object_given_twice_is_one_event(ledger: SqlLedger) -> None:
    once = entry(EVENT)

    assert await ledger.record([once, once]) == ["new", "redelivered"]
    await assert_holds(ledger, [EVENT])


async def test_entries_are_known_by_their_events(ledger: SqlLedger) -> None:
    entries = [entry(make_event(f"req_{number}"), f"{number}-0") for number in range(2500)]
    await ledger.record(entries)
    await ledger.record([entry(entries[0].event, "9999-0")])

    found = await ledger.entry_ids([*(each.event.request_id for each in entries), "req_unknown"])

    assert found == {each.event.request_id: each.stream_entry for each in entries}


async def test_consumers_at_once_bill_each_event_once(ledger: SqlLedger, database_url: str) -> None:
    events = [make_event(f"req_{number}", key_id=f"key_{number % 50}") for number in range(600)]
    others = [Database(database_url) for _ in range(3)]
    ledgers = [ledger, *(SqlLedger(other, TIERS) for other in others)]

    async def consume(number: int, ledger: SqlLedger) -> list[tuple[str, Recorded]]:
        mixed = random.Random(number).sample(events, len(events))
        verdicts: list[tuple[str, Recorded]] = []
        for batch in (mixed[at : at + 150] for at in range(0, len(mixed), 150)):
            found = await ledger.record([entry(event, f"{number}-0") for event in batch])
            verdicts += zip((event.request_id for event in batch), found, strict=True)
        return verdicts

    found = await asyncio.gather(*(consume(number, each) for number, each in enumerate(ledgers)))
    for other in others:
        await other.close()

    verdicts: dict[str, Counter[Recorded]] = defaultdict(Counter)
    for request_id, verdict in itertools.chain(*found):
        verdicts[request_id][verdict] += 1
    assert verdicts == {event.request_id: {"new": 1, "duplicate": 3} for event in events}
    await assert_holds(ledger, events)


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
        sums = sums_of(members)
        totals.append(
            UsageTotals(
                group,
                sums.requests,
                sums.pictures,
                sums.pixels,
                sums.received_bytes,
                sums.inference_microseconds,
                amount,
            )
        )
    return totals


@settings(
    max_examples=25,
    deadline=None,
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


async def test_months_end_in_utc(ledger: SqlLedger) -> None:
    tokyo = timezone(timedelta(hours=9))
    last = make_event("last", admitted_at=datetime(2026, 12, 1, 8, 59, 59, 999_999, tzinfo=tokyo))
    first = make_event("first", pictures=2, admitted_at=datetime(2026, 12, 1, 9, tzinfo=tokyo))

    await ledger.record([entry(last), entry(first)])

    months = [NOVEMBER, NOVEMBER.next, NOVEMBER.next.next]
    assert [await ledger.month_totals(month) for month in months] == [{"key_1": 1}, {"key_1": 2}, {}]
    lines = [(await ledger.invoice(month)).lines for month in months]
    assert [[line.quantity for line in each] for each in lines] == [[1], [2], []]


KILLED_BEFORE_IT_COMMITS = """
import asyncio, os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from tests.support.usage_events import make_event

def die(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO usage_daily"):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    database = Database(sys.argv[1])
    await database.prepare()
    event.listen(Engine, "after_cursor_execute", die)
    await SqlLedger(database, {}).record([LedgerEntry(make_event(), "1-0")])

asyncio.run(main())
"""


async def test_a_transaction_killed_in_the_middle_leaves_nothing(
    ledger: SqlLedger, database_url: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_BEFORE_IT_COMMITS, database_url, cwd=PROJECT
    )

    assert await process.wait() == -9
    await assert_holds(ledger, [])
    assert await ledger.record([entry(make_event())]) == ["new"]
    await assert_holds(ledger, [make_event()])


@pytest.mark.parametrize("table", ["usage_events", "usage_hourly", "usage_daily"])
async def test_an_error_of_the_database_is_trouble_and_bills_nothing(
    ledger: SqlLedger, database: Database, table: str
) -> None:
    await ledger.record([entry(make_event("before"))])
    async with database.writing() as session:
        await session.execute(text(f"ALTER TABLE {table} RENAME TO elsewhere"))

    with pytest.raises(BackendUnavailable):
        await ledger.record([entry(make_event("during"))])
    with pytest.raises(BackendUnavailable):
        await ledger.counts()

    async with database.writing() as session:
        await session.execute(text(f"ALTER TABLE elsewhere RENAME TO {table}"))
    await assert_holds(ledger, [make_event("before")])
    assert await ledger.record([entry(make_event("during"))]) == ["new"]


async def test_reading_without_a_database_is_trouble() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/ledger")
    ledger = SqlLedger(database, TIERS)
    for asked in (
        ledger.usage(month_by("total")),
        ledger.invoice(NOVEMBER),
        ledger.month_totals(NOVEMBER),
        ledger.entry_ids(["req_1"]),
        ledger.counts(),
    ):
        with pytest.raises(BackendUnavailable):
            await asked
    await database.close()
