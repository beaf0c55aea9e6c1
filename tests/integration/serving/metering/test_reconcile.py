"""Whether the books agree: when they do, when they do not, and while everything moves; and the repair."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import bindparam, text

from serving.adapters.journal_count import JournalCount
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.base import UtcDateTime
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.metering.priming import Priming
from serving.metering.reconcile import Reconciliation
from serving.metering.recount import Recount
from tests.support.consumers import drain, new_consumer
from tests.support.metering import append, append_later_form, charge, charged
from tests.support.usage_events import make_event

KEYS = [f"key_{number}" for number in range(10)]


@pytest.fixture
async def month(counting: Recount) -> Month:
    this, _ = await counting.counters.months()
    return this


@pytest.fixture
def reconciliation(connection: RedisConnection, ledger: SqlLedger, counting: Recount) -> Reconciliation:
    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    counting.sleep = at_once
    stream = RedisUsageStream(connection, consumer="reconcile")
    return Reconciliation(ledger, stream, counting, count_journals=JournalCount)


@pytest.fixture
async def billed(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, month: Month
) -> list[UsageEvent]:
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
    return events


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
    event = make_event("half way", key_id=KEYS[0], pictures=5, admitted_at=billed[0].admitted_at)
    (entry,) = await append(connection, event)
    await ledger.record([LedgerEntry(event, stream_entry=entry)])

    assert (await reconciliation.run()).line() == "They agree: 201 events, 1 on their way, 10 keys."


@pytest.mark.parametrize("by", [1, 1000, -1, -40, -41])
async def test_a_count_that_is_off_is_named_and_repaired(
    connection: RedisConnection,
    reconciliation: Reconciliation,
    billed: list[UsageEvent],
    month: Month,
    by: int,
) -> None:
    await charge(connection, KEYS[3], month, by)

    found, repaired = await reconciliation.run(), await reconciliation.run(repair=True)

    assert found.line() == (
        f"They do not agree: key_3 counts {40 + by} in {month}, and should 40; "
        "200 events, 0 on their way, 10 keys."
    )
    assert repaired.line() == "They agree: 200 events, 0 on their way, 10 keys; 1 counts were repaired."
    assert await charged(connection, KEYS[3], month) == 40


async def test_many_that_are_off_still_make_one_line(
    connection: RedisConnection, reconciliation: Reconciliation, billed: list[UsageEvent], month: Month
) -> None:
    """Of both months, and of a key that the ledger has never heard of."""
    for key_id in (*KEYS[:4], "key_unheard_of"):
        await charge(connection, key_id, month, 1)
        await charge(connection, key_id, month.previous, 2)

    found, repaired = await reconciliation.run(), await reconciliation.run(repair=True)

    assert len(found.drifts) == 10
    assert found.line() == (
        f"They do not agree: key_0 counts 2 in {month.previous}, and should 0; "
        f"key_0 counts 21 in {month}, and should 20; key_1 counts 2 in {month.previous}, and should 0; "
        "so are 7 more counts off; 200 events, 0 on their way, 11 keys."
    )
    assert (repaired.agrees, repaired.repaired) == (True, 10)
    assert await charged(connection, "key_unheard_of", month) == 0


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        (
            "UPDATE usage_hourly SET pictures = pictures + 1 WHERE key_id = 'key_0'",
            "the ledger has 200 events, 300 pictures, by the hour 200 events, {hourly} pictures, "
            "by the day 200 events, 300 pictures",
        ),
        (
            "DELETE FROM usage_events WHERE request_id = 'req_7'",
            "the ledger has 199 events, 298 pictures, by the hour 200 events, 300 pictures, "
            "by the day 200 events, 300 pictures",
        ),
        (
            "UPDATE usage_events SET pixels = pixels + 1 WHERE request_id = 'req_7'",
            "the ledger has 200 events, 300 pictures, by the hour 200 events, 300 pictures, "
            "by the day 200 events, 300 pictures, but not the same sums",
        ),
    ],
    ids=["a roll-up changed", "an event deleted", "an event changed"],
)
async def test_a_ledger_that_was_tampered_with_is_not_repaired(
    database: Database,
    reconciliation: Reconciliation,
    billed: list[UsageEvent],
    statement: str,
    difference: str,
) -> None:
    """Nobody can say which of them is right."""
    await tamper(database, statement)

    found, repaired = await reconciliation.run(), await reconciliation.run(repair=True)

    assert not found.agrees
    assert not repaired.agrees
    hours = len({event.admitted_at for event in billed if event.key_id == "key_0"})
    assert found.line().startswith(f"They do not agree: {difference.format(hourly=300 + hours)};")


async def test_an_event_that_is_missing_altogether_shows_in_its_keys_count(
    database: Database, reconciliation: Reconciliation, billed: list[UsageEvent], month: Month
) -> None:
    """As if an entry had been acknowledged and never recorded."""
    await tamper(database, "DELETE FROM usage_events WHERE request_id = 'req_7'")
    for table, unit in (("usage_hourly", timedelta(hours=1)), ("usage_daily", timedelta(days=1))):
        begin = month.begin + timedelta(hours=7) // unit * unit
        async with database.writing() as session:
            await session.execute(
                text(
                    f"UPDATE {table} SET requests = requests - 1, pictures = pictures - 2,"
                    " pixels = pixels - 307200, received_bytes = received_bytes - 40000,"
                    " inference_microseconds = inference_microseconds - 5000"
                    " WHERE key_id = 'key_7' AND begin = :begin"
                ).bindparams(bindparam("begin", begin, UtcDateTime))
            )

    report = await reconciliation.run()

    assert report.sums_agree
    assert report.line() == (
        f"They do not agree: key_7 counts 40 in {month}, and should 38; 199 events, 0 on their way, 10 keys."
    )


async def test_after_a_flush_a_repair_brings_all_counts_back(
    connection: RedisConnection, reconciliation: Reconciliation, billed: list[UsageEvent], month: Month
) -> None:
    await connection.redis.flushall()

    found, repaired = await reconciliation.run(), await reconciliation.run(repair=True)

    assert not found.agrees
    assert found.unprimed == keyspace.PARTITIONS
    assert repaired.line() == "They agree: 200 events, 0 on their way, 10 keys."
    assert [await charged(connection, key_id, month) for key_id in KEYS] == [20, 40] * 5


async def test_several_repairs_at_once_repair_once(
    connection: RedisConnection,
    reconciliation: Reconciliation,
    counting: Recount,
    billed: list[UsageEvent],
    month: Month,
) -> None:
    for key_id in KEYS:
        await charge(connection, key_id, month, 5)
    counting.sleep = asyncio.sleep  # for they wait for each other

    reports = await asyncio.gather(*(reconciliation.run(repair=True) for _ in range(4)))

    assert all(report.agrees for report in reports)
    assert [await charged(connection, key_id, month) for key_id in KEYS] == [20, 40] * 5


async def test_under_traffic_nothing_is_reported_that_is_not_there_and_what_is_there_is(
    connection: RedisConnection,
    ledger: SqlLedger,
    reconciliation: Reconciliation,
    billed: list[UsageEvent],
    month: Month,
) -> None:
    """Events are appended, some of them twice, and moved, all the while."""
    is_over = asyncio.Event()

    async def append_events() -> int:
        number = 0
        while not is_over.is_set():
            key_id = KEYS[number % len(KEYS)]
            event = make_event(f"live_{number}", key_id=key_id, admitted_at=month.begin)
            await append(connection, event, *([event] if number % 5 == 0 else []))
            number += 1
        return number

    consumer = new_consumer(connection, ledger)
    consuming, appending = asyncio.create_task(consumer.run()), asyncio.create_task(append_events())
    quiet = await reconciliation.run()
    await charge(connection, KEYS[3], month, 50)
    found = await reconciliation.run()
    repaired = await reconciliation.run(repair=True)
    is_over.set()
    appended = await appending
    consumer.stop()
    await consuming
    after = await reconciliation.run()

    assert quiet.drifts == {}
    assert [key_id for key_id, _ in found.drifts] == [KEYS[3]]
    assert (repaired.agrees, repaired.repaired) == (True, 1)
    assert appended > 0
    assert after.line() == f"They agree: {200 + appended} events, 0 on their way, 10 keys."


async def test_what_cannot_be_compared_is_said_beside_the_verdict(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, billed: list[UsageEvent]
) -> None:
    stream = RedisUsageStream(connection, consumer="reconcile")

    report = await Reconciliation(ledger, stream, counting, count_journals=lambda: JournalCount(12)).run()

    assert report.line() == (
        "They agree: 200 events, 0 on their way, 10 keys; 12 events wait in this machine's journals."
    )


async def test_answers_that_nobody_can_read_are_no_agreement(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, billed: list[UsageEvent]
) -> None:
    """Nobody is billed for them."""
    stream = RedisUsageStream(connection, consumer="reconcile")
    reconciliation = Reconciliation(ledger, stream, counting, count_journals=lambda: JournalCount(damaged=2))
    damaged = await reconciliation.run()
    await connection.redis.xadd(keyspace.poison_stream(0), {"e": b"?"})
    poisoned = await reconciliation.run(repair=True)

    assert not damaged.agrees
    assert damaged.line() == (
        "They do not agree: 2 journals of this machine are damaged; 200 events, 0 on their way, 10 keys."
    )
    assert not poisoned.agrees
    assert poisoned.line() == (
        "They do not agree: 1 entries that cannot be read were set aside; 2 journals of this machine are "
        "damaged; 200 events, 0 on their way, 10 keys."
    )


async def test_charges_of_a_later_form_are_left_alone(
    connection: RedisConnection, reconciliation: Reconciliation, billed: list[UsageEvent], month: Month
) -> None:
    """Nobody here can say whose they are; what is missing beside them is put right all the same."""
    others = next(k for k in KEYS if keyspace.partition_of(k) != keyspace.partition_of(KEYS[1]))
    await append_later_form(connection, *(replace(billed[1], request_id=f"later_{n}") for n in range(3)))
    await charge(connection, others, month, 5)

    found, repaired = await reconciliation.run(), await reconciliation.run(repair=True)
    charges = [await charged(connection, key_id, month) for key_id in (KEYS[1], others)]
    await charge(connection, KEYS[1], month, -10)
    again = await reconciliation.run(repair=True)

    assert [key_id for key_id, _ in found.drifts] == [others]
    assert charges == [40 + 6, 20]
    assert not repaired.agrees
    assert repaired.line() == (
        "They do not agree: 3 entries can be read by a newer version only; "
        "200 events, 3 on their way, 10 keys; 1 counts were repaired."
    )
    assert (again.repaired, await charged(connection, KEYS[1], month)) == (1, 40)
