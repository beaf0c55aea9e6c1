"""Whether the books agree, when they do, when they do not, and while everything moves; and what repairs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from sqlalchemy import text

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.metering.priming import Priming
from serving.metering.reconcile import Reconciliation, Report
from serving.metering.recount import Recount
from tests.support.consumers import drain, new_consumer
from tests.support.metering import append, charge, charged
from tests.support.usage_events import make_event

KEYS = [f"key_{number}" for number in range(10)]
Reconcile = Callable[..., "asyncio.Future[Report]"]


@pytest.fixture
async def month(counting: Recount) -> Month:
    this, _ = await counting.counters.months()
    return this


@pytest.fixture
def reconciliation(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount
) -> Reconciliation:
    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    counting.sleep = at_once
    stream = RedisUsageStream(connection, consumer="reconcile")
    return Reconciliation(ledger, stream, counting, count_journals=lambda: 0)


@pytest.fixture
async def billed(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, month: Month
) -> AsyncIterator[list[UsageEvent]]:
    """Two hundred events of twenty hours, in the ledger."""
    await Priming(counting).prime()
    events = [
        make_event(
            f"req_{number}",
            key_id=KEYS[number % len(KEYS)],
            pictures=1 + number % 2,
            admitted_at=month.begin + timedelta(hours=number % 20),
        )
        for number in range(200)
    ]
    await append(connection, *events)
    await drain(new_consumer(connection, ledger))
    yield events


async def tamper(database: Database, statement: str) -> None:
    async with database.writing() as session:
        await session.execute(text(statement))


async def test_a_new_site_agrees(reconciliation: Reconciliation) -> None:
    report = await reconciliation.run()

    assert report.agrees
    assert report.line() == (
        "They agree: 0 events, 0 on their way, 0 keys; "
        "16 partitions of Redis are not filled from the ledger yet."
    )


async def test_what_was_moved_agrees(reconciliation: Reconciliation, billed: list[UsageEvent]) -> None:
    report = await reconciliation.run()

    assert report.agrees
    assert report.line() == "They agree: 200 events, 0 on their way, 10 keys."


async def test_what_is_on_its_way_agrees(
    connection: RedisConnection, reconciliation: Reconciliation, billed: list[UsageEvent], month: Month
) -> None:
    """Entries not moved, entries moved and not acknowledged, duplicates, leases."""
    await append(connection, *billed[:3], make_event("new", key_id="key_new", admitted_at=month.begin))
    lease = f"{int(month.begin.timestamp() * 1e6)} 30000000 4 {month}"
    await connection.redis.hset(keyspace.account(KEYS[1]), "lease:x", lease)
    await charge(connection, KEYS[1], month, 4)

    report = await reconciliation.run()

    assert report.line() == "They agree: 200 events, 4 on their way, 11 keys."


async def test_recorded_and_not_acknowledged_agrees(
    connection: RedisConnection, ledger: SqlLedger, reconciliation: Reconciliation, billed: list[UsageEvent]
) -> None:
    from serving.adapters.sql.ledger import LedgerEntry

    event = make_event("half way", key_id=KEYS[0], pictures=5, admitted_at=billed[0].admitted_at)
    (entry,) = await append(connection, event)
    await ledger.record([LedgerEntry(event, stream_entry=entry)])

    assert (await reconciliation.run()).line() == "They agree: 201 events, 1 on their way, 10 keys."


@pytest.mark.parametrize(("by", "now"), [(3, 33), (-1, 29)])
async def test_a_count_that_is_off_is_named_and_repaired(
    connection: RedisConnection,
    reconciliation: Reconciliation,
    billed: list[UsageEvent],
    month: Month,
    by: int,
    now: int,
) -> None:
    await charge(connection, KEYS[3], month, by - 10)  # of forty
    await charge(connection, KEYS[3], month, 0)
    before = await charged(connection, KEYS[3], month)

    found = await reconciliation.run()
    repaired = await reconciliation.run(repair=True)

    assert not found.agrees
    assert f"{KEYS[3]} counts {before} in {month}, and should 40" in found.line()
    assert repaired.agrees
    assert "1 counts were repaired" in repaired.line()
    assert await charged(connection, KEYS[3], month) == 40
