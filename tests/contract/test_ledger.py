"""The ledger takes in each event once, whoever moves it there and however often, on every database."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, text

from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.adapters.sql.ledger_tables import EVENTS
from serving.domain.month import Month
from serving.domain.usage import UsageEvent, UsageQuery, Verdict
from serving.errors import BackendUnavailable
from tests.support.keys import TIERS
from tests.support.sql_ledger import assert_holds, entry
from tests.support.usage_events import EVENT, make_event

NOVEMBER = Month(2026, 11)
PROJECT = Path(__file__).parents[2]


async def test_nothing_recorded_is_nothing_kept(ledger: SqlLedger) -> None:
    assert await ledger.record([]) == []
    assert await ledger.entry_ids(["req_1"]) == {}
    await assert_holds(ledger, [])


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
    ledger: SqlLedger, batches: list[list[str]], verdicts: list[list[Verdict]]
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


@pytest.mark.parametrize("overlap", [True, False], ids=["the same events", "events of the same keys"])
async def test_consumers_at_once_bill_each_event_once(
    ledger: SqlLedger, ledger_url: str, overlap: bool
) -> None:
    others = [Database(ledger_url) for _ in range(3)]
    ledgers = [ledger, *(SqlLedger(other, TIERS) for other in others)]
    events = [
        [make_event(f"req_{overlap or owner}_{number}", key_id=f"key_{number % 50}") for number in range(600)]
        for owner in range(len(ledgers))
    ]
    verdicts: Counter[tuple[str, Verdict]] = Counter()

    async def consume(number: int) -> None:
        mixed = random.Random(number).sample(events[number], len(events[number]))
        for batch in (mixed[at : at + 150] for at in range(0, len(mixed), 150)):
            recorded = await ledgers[number].record([entry(event, f"{number}-0") for event in batch])
            verdicts.update(zip((event.request_id for event in batch), recorded, strict=True))

    await asyncio.gather(*map(consume, range(len(ledgers))))
    for other in others:
        await other.close()

    billed = {event.request_id: event for some in events for event in some}
    assert {each: verdicts[each, "new"] for each in billed} == dict.fromkeys(billed, 1)
    assert {each: verdicts[each, "duplicate"] for each in billed} == dict.fromkeys(billed, 3 * overlap)
    await assert_holds(ledger, list(billed.values()))


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


async def test_a_transaction_killed_in_the_middle_leaves_nothing(ledger: SqlLedger, ledger_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_BEFORE_IT_COMMITS, ledger_url, cwd=PROJECT
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
    try:
        with pytest.raises(BackendUnavailable):
            await ledger.record([entry(make_event("during"))])
        with pytest.raises(BackendUnavailable):
            await ledger.counts()
    finally:
        async with database.writing() as session:
            await session.execute(text(f"ALTER TABLE elsewhere RENAME TO {table}"))

    await assert_holds(ledger, [make_event("before")])
    assert await ledger.record([entry(make_event("during"))]) == ["new"]


async def test_reading_without_a_database_is_trouble() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/ledger")
    ledger = SqlLedger(database, TIERS)
    for asked in (
        ledger.usage(UsageQuery(NOVEMBER.begin, NOVEMBER.end)),
        ledger.invoice(NOVEMBER),
        ledger.month_totals(NOVEMBER),
        ledger.used("key_1", NOVEMBER),
        ledger.entry_ids(["req_1"]),
        ledger.counts(),
    ):
        with pytest.raises(BackendUnavailable):
            await asked
    await database.close()


async def test_what_one_key_has_used_in_a_month(ledger: SqlLedger) -> None:
    december = datetime(2026, 12, 1, tzinfo=UTC)
    events = [
        replace(EVENT, request_id="req_1", key_id="key_a", pictures=3),
        replace(EVENT, request_id="req_2", key_id="key_a", pictures=4, deployment="another"),
        replace(EVENT, request_id="req_3", key_id="key_b", pictures=50),
        replace(EVENT, request_id="req_4", key_id="key_a", pictures=600, admitted_at=december),
    ]
    await ledger.record([entry(event, f"{number}-0") for number, event in enumerate(events, start=1)])
    assert await ledger.used("key_a", NOVEMBER) == 7
    assert await ledger.used("key_a", NOVEMBER.next) == 600
    assert await ledger.used("key_c", NOVEMBER) == 0
