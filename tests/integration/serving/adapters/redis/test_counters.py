"""The counts of the month on every kind of Redis: seen as of one moment, and set by one process at a time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.adapters.redis import counters as counters_module
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.counters import CountingLock, RedisCounters
from serving.adapters.redis.entries import decoded
from serving.adapters.redis.pulse import stream_id
from serving.domain.month import Month
from tests.support.metering import append, charge, charged
from tests.support.usage_events import make_event

NOVEMBER, DECEMBER = Month(2026, 11), Month(2026, 12)
KEY = "key_1"
PARTITION = keyspace.partition_of(KEY)


@pytest.fixture
def counters(connection: RedisConnection) -> RedisCounters:
    return RedisCounters(connection)


async def taken(connection: RedisConnection) -> CountingLock:
    lock = CountingLock(connection, PARTITION)
    assert await lock.take()
    return lock


@pytest.mark.parametrize(
    ("now", "this", "last"),
    [
        (datetime(2026, 11, 21, 12, tzinfo=UTC), Month(2026, 11), Month(2026, 10)),
        (datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC), Month(2026, 11), Month(2026, 10)),
        (datetime(2027, 1, 1, tzinfo=UTC), Month(2027, 1), Month(2026, 12)),
    ],
)
async def test_months_are_those_of_redis_clock(
    connection: RedisConnection, now: datetime, this: Month, last: Month
) -> None:
    microseconds = round(now.timestamp() * 1_000_000)
    clock = f"local function now_microseconds() return {microseconds} end"

    assert await RedisCounters(connection, clock=clock).months() == (this, last)


async def test_an_empty_redis_has_no_keys_and_no_epoch(counters: RedisCounters) -> None:
    look = await counters.look(PARTITION, [KEY])

    assert await counters.key_ids() == set()
    assert (look.epoch, look.last_id, look.first_entries) == (None, (0, 0), [])
    assert (look.accounts[KEY].used[NOVEMBER], look.accounts[KEY].leased[NOVEMBER]) == (0, 0)


async def test_every_key_of_every_partition_is_found_and_nothing_else(
    connection: RedisConnection, counters: RedisCounters
) -> None:
    key_ids = {f"key_{number}" for number in range(100)}
    for key_id in key_ids:
        await charge(connection, key_id, NOVEMBER, 1)
    await connection.redis.set(f"vg:{{{PARTITION}}}:answer:{KEY}:abc", "kept")
    await connection.redis.set(keyspace.epoch(PARTITION), "epoch")

    assert await counters.key_ids() == key_ids


async def test_a_look_sees_counts_leases_and_entries(
    connection: RedisConnection, counters: RedisCounters
) -> None:
    event = make_event(key_id=KEY, pictures=3)
    (entry_id,) = await append(connection, event)
    await connection.redis.set(keyspace.epoch(PARTITION), "epoch")
    await connection.redis.hset(
        keyspace.account(KEY),
        mapping={
            "level": 60_000_000,
            "filled_at": 1,
            "open": 3,
            "used:2026-12": 4,
            "lease:a": "1700000000000000 30000000 2 2026-11",
            "lease:b": "1700000000000000 30000000 5 2026-11",
            "lease:c": "1700000000000000 30000000 4 2026-12",
        },
    )

    look = await counters.look(PARTITION, [KEY])

    assert look.epoch == "epoch"
    assert look.last_id == stream_id(entry_id)
    assert [decoded(PARTITION, raw).event for raw in look.first_entries] == [event]
    assert look.accounts[KEY].used == {NOVEMBER: 3, DECEMBER: 4}
    assert look.accounts[KEY].leased == {NOVEMBER: 7, DECEMBER: 4}


async def test_a_long_stream_is_read_in_pieces_up_to_where_it_was(
    connection: RedisConnection, counters: RedisCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "ENTRIES_IN_A_LOOK", 2)
    ids = await append(connection, *(make_event(f"req_{number}", key_id=KEY) for number in range(5)))
    look = await counters.look(PARTITION, [KEY])
    await append(connection, make_event("later", key_id=KEY))

    pieces = [[decoded(PARTITION, raw).entry_id for raw in look.first_entries]]
    while raws := await counters.entries(PARTITION, after=stream_id(pieces[-1][-1]), until=look.last_id):
        pieces.append([decoded(PARTITION, raw).entry_id for raw in raws])

    assert pieces == [ids[:2], ids[2:4], ids[4:]]


async def test_one_has_the_lock_until_it_gives_it_back(
    connection: RedisConnection, counters: RedisCounters
) -> None:
    async with counters.lock(PARTITION) as first:
        async with counters.lock(PARTITION) as second:
            assert second is None
        assert first is not None
        assert await first.prime()

    async with counters.lock(PARTITION) as third:
        assert third is not None


async def test_who_has_lost_the_lock_changes_nothing(connection: RedisConnection) -> None:
    late = await taken(connection)
    await connection.redis.delete(keyspace.counting_lock(PARTITION))  # as when it lapses, or in a flush
    other = await taken(connection)

    assert not await late.correct({(KEY, NOVEMBER): 5}, seen_epoch=None)
    assert not await late.prime()
    await late.give_back()

    assert await charged(connection, KEY, NOVEMBER) == 0
    assert await connection.redis.get(keyspace.epoch(PARTITION)) is None
    assert await other.correct({(KEY, NOVEMBER): 5}, seen_epoch=None)


async def test_counts_are_moved_not_set(connection: RedisConnection) -> None:
    lock = await taken(connection)
    await charge(connection, KEY, NOVEMBER, 10)

    assert await lock.correct({(KEY, NOVEMBER): -3, (KEY, DECEMBER): 2}, seen_epoch=None)

    assert await charged(connection, KEY, NOVEMBER) == 7
    assert await charged(connection, KEY, DECEMBER) == 2
    assert await connection.redis.ttl(keyspace.account(KEY)) > 62 * 86_400


async def test_after_another_flush_what_was_seen_is_void(connection: RedisConnection) -> None:
    lock = await taken(connection)
    await connection.redis.set(keyspace.epoch(PARTITION), "after")

    assert not await lock.correct({(KEY, NOVEMBER): 5}, seen_epoch="before")
    assert not await lock.correct({(KEY, NOVEMBER): 5}, seen_epoch=None)
    assert await lock.correct({(KEY, NOVEMBER): 5}, seen_epoch="after")

    assert await charged(connection, KEY, NOVEMBER) == 5


async def test_an_epoch_that_is_there_stays(connection: RedisConnection) -> None:
    lock = await taken(connection)
    await connection.redis.set(keyspace.epoch(PARTITION), "there")

    assert await lock.prime()

    assert await connection.redis.get(keyspace.epoch(PARTITION)) == b"there"
