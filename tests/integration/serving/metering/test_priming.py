"""A Redis that is new, or was flushed, has its counts from the ledger before anybody is admitted by it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.counters import CountingLock
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.metering.drift import Totals
from serving.metering.priming import Priming, priming
from serving.metering.recount import Recount, recount
from tests.support.metering import append, charge, charged
from tests.support.usage_events import make_event

KEYS = [f"key_{number}" for number in range(40)]


@pytest.fixture
async def months(counting: Recount) -> tuple[Month, Month]:
    """This one and the last."""
    return await counting.counters.months()


def used(key_id: str, moment: datetime, pictures: int) -> UsageEvent:
    return make_event(f"{key_id} {moment}", key_id=key_id, pictures=pictures, admitted_at=moment)


async def record(ledger: SqlLedger, *events: UsageEvent, entry: str = "1-1") -> None:
    await ledger.record([LedgerEntry(event, stream_entry=entry) for event in events])


async def epochs(connection: RedisConnection) -> list[bytes | None]:
    redis: Any = connection.redis
    return [await redis.get(keyspace.epoch(partition)) for partition in range(keyspace.PARTITIONS)]


async def test_with_an_empty_ledger_there_are_only_epochs(
    connection: RedisConnection, counting: Recount
) -> None:
    await Priming(counting).prime()

    made = await epochs(connection)
    assert None not in made
    assert len(set(made)) == keyspace.PARTITIONS
    assert await connection.redis.dbsize() == keyspace.PARTITIONS


async def test_each_keys_months_are_what_the_ledger_says(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, months: tuple[Month, Month]
) -> None:
    this, last = months
    for number, key_id in enumerate(KEYS, start=1):
        of_months = ((this.begin, number), (last.begin, 100), (last.previous.begin, 1000))
        await record(ledger, *(used(key_id, moment, pictures) for moment, pictures in of_months))

    await Priming(counting).prime()

    for number, key_id in enumerate(KEYS, start=1):
        counts = [await charged(connection, key_id, month) for month in (this, last, last.previous)]
        assert counts == [number, 100, 0]


async def test_a_primed_redis_is_left_as_it_is(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, months: tuple[Month, Month]
) -> None:
    await Priming(counting).prime()
    before = await epochs(connection)
    await record(ledger, used(KEYS[0], months[0].begin, 5))

    await Priming(counting).prime()

    assert await epochs(connection) == before
    assert await charged(connection, KEYS[0], months[0]) == 0


async def test_whether_it_is_primed_is_asked_without_reading_the_streams(
    connection: RedisConnection, counting: Recount, months: tuple[Month, Month]
) -> None:
    await append(connection, *(used(key_id, months[0].begin, 1) for key_id in KEYS))
    await connection.redis.config_resetstat()

    assert await Priming(counting).unprimed() == list(range(keyspace.PARTITIONS))

    assert "cmdstat_xrange" not in await connection.redis.info("commandstats")


async def test_ten_processes_prime_it_once(
    connection: RedisConnection, ledger: SqlLedger, months: tuple[Month, Month]
) -> None:
    for key_id in KEYS:
        await record(ledger, used(key_id, months[0].begin, 7))

    await asyncio.gather(*(priming(connection, ledger).prime() for _ in range(10)))

    assert [await charged(connection, key_id, months[0]) for key_id in KEYS] == [7] * len(KEYS)
    assert None not in await epochs(connection)


async def test_only_what_has_no_epoch_is_primed(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, months: tuple[Month, Month]
) -> None:
    """As on a cluster of which one node was lost."""
    lost, kept = KEYS[0], next(k for k in KEYS if keyspace.partition_of(k) != keyspace.partition_of(KEYS[0]))
    await Priming(counting).prime()
    before = await epochs(connection)
    await record(ledger, used(lost, months[0].begin, 5), used(kept, months[0].begin, 5))
    await connection.redis.delete(keyspace.epoch(keyspace.partition_of(lost)))

    await Priming(counting).prime()

    assert await charged(connection, lost, months[0]) == 5
    assert await charged(connection, kept, months[0]) == 0
    changed = [p for p, (a, b) in enumerate(zip(before, await epochs(connection), strict=True)) if a != b]
    assert changed == [keyspace.partition_of(lost)]


async def test_what_is_in_the_stream_and_under_way_is_counted_too(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount, months: tuple[Month, Month]
) -> None:
    """Where the epoch alone was lost. What the stream and the ledger have both is counted once."""
    this, key_id = months[0], KEYS[0]
    recorded, waiting = used(key_id, this.begin, 2), make_event("waiting", key_id=key_id, pictures=3)
    waiting = make_event("waiting", key_id=key_id, pictures=3, admitted_at=this.begin)
    (entry, _) = await append(connection, recorded, waiting)
    await record(ledger, recorded, entry=entry)
    lease = f"{int(this.begin.timestamp() * 1e6)} 30000000 4 {this}"
    await connection.redis.hset(keyspace.account(key_id), "lease:x", lease)
    await connection.redis.hset(keyspace.account(key_id), keyspace.used_field(this), 999)

    await Priming(counting).prime()

    assert await charged(connection, key_id, this) == 2 + 3 + 4


class GrowsMeanwhile:
    """A ledger that takes in one more event just after each of the first looks at it: the consumer's last."""

    def __init__(self, ledger: SqlLedger, *events: UsageEvent) -> None:
        self._ledger = ledger
        self._events = list(events)

    async def month_totals(self, month: Month) -> dict[str, int]:
        totals = dict(await self._ledger.month_totals(month))
        if self._events:
            await record(self._ledger, self._events.pop())
        return totals

    async def entry_ids(self, event_ids: object) -> dict[str, str]:
        return {}


async def test_what_the_consumer_commits_meanwhile_is_counted(
    connection: RedisConnection, ledger: SqlLedger, months: tuple[Month, Month]
) -> None:
    late = [
        make_event(f"late_{number}", key_id=KEYS[0], admitted_at=months[0].begin, pictures=2)
        for number in range(6)
    ]
    await record(ledger, used(KEYS[0], months[0].begin, 1))
    growing: Totals = GrowsMeanwhile(ledger, *late)

    await priming(connection, growing).prime()

    assert await charged(connection, KEYS[0], months[0]) == 1 + 2 * len(late)


class SeesEpochs:
    """A ledger that writes down which epochs there are whenever it is asked."""

    def __init__(self, ledger: SqlLedger, connection: RedisConnection) -> None:
        self._ledger = ledger
        self._connection = connection
        self.seen: list[set[bytes | None]] = []

    async def month_totals(self, month: Month) -> Mapping[str, int]:
        self.seen.append(set(await epochs(self._connection)))
        return await self._ledger.month_totals(month)

    async def entry_ids(self, event_ids: object) -> dict[str, str]:
        return {}


async def test_the_epoch_comes_after_the_last_look_at_the_ledger(
    connection: RedisConnection, ledger: SqlLedger, months: tuple[Month, Month]
) -> None:
    """Before it, no gateway is let in."""
    await record(ledger, *(used(key_id, months[0].begin, 3) for key_id in KEYS))
    ledger_seen = SeesEpochs(ledger, connection)

    await priming(connection, ledger_seen).prime()

    assert len(ledger_seen.seen) > 4  # it looks again at what it has set
    assert all(seen == {None} for seen in ledger_seen.seen)


class FlushesMeanwhile:
    """A ledger during whose first looks Redis is flushed."""

    def __init__(self, ledger: SqlLedger, connection: RedisConnection, *, times: int) -> None:
        self._ledger = ledger
        self._connection = connection
        self._times_left = times

    async def month_totals(self, month: Month) -> dict[str, int]:
        if self._times_left:
            self._times_left -= 1
            await self._connection.redis.flushall()
        return dict(await self._ledger.month_totals(month))

    async def entry_ids(self, event_ids: object) -> dict[str, str]:
        return {}


@pytest.mark.parametrize("times", [1, 2, 3, 5, 8])
async def test_flushed_again_it_begins_again(
    connection: RedisConnection, ledger: SqlLedger, months: tuple[Month, Month], times: int
) -> None:
    await record(ledger, *(used(key_id, months[0].begin, 3) for key_id in KEYS))
    flushing: Totals = FlushesMeanwhile(ledger, connection, times=times)

    await priming(connection, flushing).prime()

    assert [await charged(connection, key_id, months[0]) for key_id in KEYS] == [3] * len(KEYS)
    assert None not in await epochs(connection)


async def test_it_waits_for_who_has_begun_and_takes_over_from_the_dead(
    connection: RedisConnection, ledger: SqlLedger, months: tuple[Month, Month]
) -> None:
    await record(ledger, used(KEYS[0], months[0].begin, 3))
    partition = keyspace.partition_of(KEYS[0])
    dead = CountingLock(connection, partition)
    assert await dead.take()
    assert await dead.correct({(KEYS[0], months[0]): 2}, seen_epoch=None)
    pauses = 0

    async def lapse(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:
            await connection.redis.delete(keyspace.counting_lock(partition))

    counting = Recount(recount(connection, ledger).drifts, sleep=lapse)
    await Priming(counting).prime()

    assert pauses >= 3
    assert await charged(connection, KEYS[0], months[0]) == 3
    assert not await dead.correct({(KEYS[0], months[0]): 2}, seen_epoch=None)


async def test_counts_of_keys_that_the_ledger_does_not_know_are_taken_back(
    connection: RedisConnection, counting: Recount, months: tuple[Month, Month]
) -> None:
    await charge(connection, KEYS[0], months[0], 9)

    await Priming(counting).prime()

    assert await charged(connection, KEYS[0], months[0]) == 0
