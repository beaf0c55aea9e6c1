"""Entries that were set aside, on every kind of Redis: moved back once they can be read, each once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.adapters.redis import keyspace, poison
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.poison import RedisPoison
from serving.adapters.redis.stream import RedisUsageStream
from tests.support.metering import append, append_later_form, set_aside
from tests.support.usage_events import make_event

KEYS = [f"key_{number}" for number in range(20)]


async def make_poison(connection: RedisConnection, *key_ids: str) -> None:
    for number, key_id in enumerate(key_ids):
        ids = await append(connection, make_event(f"req_{number}", key_id=key_id))
        await set_aside(connection, keyspace.partition_of(key_id), *ids)


async def requests_in_the_stream(connection: RedisConnection) -> list[str]:
    reading = await RedisUsageStream(connection, consumer="one").read()
    assert (reading.set_aside, reading.later) == (0, 0)
    return sorted(entry.event.request_id for entry in reading.entries)


async def test_without_poison_nothing_is_moved(connection: RedisConnection) -> None:
    replayed = await RedisPoison(connection).replay()

    assert (replayed.moved, replayed.left, replayed.key_ids, replayed.reasons) == (0, 0, set(), [])


async def test_what_can_be_read_is_in_the_stream_again_and_only_once(
    connection: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than is looked at at once, and by several at a time."""
    monkeypatch.setattr(poison, "ENTRIES_AT_ONCE", 2)
    await make_poison(connection, *KEYS, *[KEYS[0]] * 5)

    several = await asyncio.gather(*(RedisPoison(connection).replay() for _ in range(3)))

    assert sum(each.moved for each in several) == 25
    assert set().union(*(each.key_ids for each in several)) == set(KEYS)
    assert (await RedisPoison(connection).replay()).moved == 0
    assert await requests_in_the_stream(connection) == sorted(f"req_{number}" for number in range(25))
    assert (await RedisUsageStream(connection, consumer="one").backlog()).poison == 0


async def test_what_cannot_be_read_stays_and_is_named(connection: RedisConnection) -> None:
    await make_poison(connection, KEYS[0])
    partition = keyspace.partition_of(KEYS[0])
    stream = keyspace.usage_stream(partition)
    redis: Any = connection.redis
    ids = [(await redis.xadd(stream, {"e": "?"})).decode()]
    ids += await append_later_form(connection, make_event("later", key_id=KEYS[0]))
    await set_aside(connection, partition, *ids)

    replayed = await RedisPoison(connection).replay()

    name = keyspace.poison_stream(partition)
    places = [entry_id.decode() for entry_id, _ in await redis.xrange(name)]
    assert (replayed.moved, replayed.left) == (1, 2)
    assert replayed.reasons == [
        f"{name} {places[0]}: this is no usage event",
        f"{name} {places[1]}: a usage event of form 2, where 1 is known",
    ]
    assert await requests_in_the_stream(connection) == ["req_0"]
