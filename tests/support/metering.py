"""What a gateway leaves in Redis, for tests of what comes after it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import SET_ASIDE
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.metrics import Metrics

TIMEOUT_SECONDS = 5.0
APPEND = """
    redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[2])
    return redis.call('XADD', KEYS[1], '*', 'e', ARGV[3])
"""


def connect(url: SecretStr) -> RedisConnection:
    return RedisConnection(url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics(CollectorRegistry()))


async def append(connection: RedisConnection, *events: UsageEvent) -> list[str]:
    """Each charged, and an entry of its partition's stream, in one step; the ids of the entries."""
    return [await _append(connection, event, usage_codec.encode(event)) for event in events]


async def append_later_form(connection: RedisConnection, *events: UsageEvent) -> list[str]:
    """As a gateway of a version to come does."""
    this, next_one = (b'"form":%d,' % form for form in (usage_codec.FORM, usage_codec.FORM + 1))
    return [
        await _append(connection, event, usage_codec.encode(event).replace(this, next_one))
        for event in events
    ]


async def _append(connection: RedisConnection, event: UsageEvent, data: bytes) -> str:
    redis: Any = connection.redis  # whose types know text answers only
    keys = (keyspace.usage_stream(keyspace.partition_of(event.key_id)), keyspace.account(event.key_id))
    entry_id = await redis.eval(APPEND, 2, *keys, keyspace.used_field(event.month), event.pictures, data)
    return str(entry_id.decode())


async def set_aside(connection: RedisConnection, partition: int, *entry_ids: str) -> None:
    """As a consumer does that cannot read them."""
    keys = (keyspace.usage_stream(partition), keyspace.poison_stream(partition))
    await connection.run(SET_ASIDE, keys, (keyspace.LEDGER_GROUP, *entry_ids))


async def charge(connection: RedisConnection, key_id: str, month: Month, pictures: int) -> None:
    redis: Any = connection.redis
    await redis.hincrby(keyspace.account(key_id), keyspace.used_field(month), pictures)


async def charged(connection: RedisConnection, key_id: str, month: Month) -> int:
    redis: Any = connection.redis
    return int(await redis.hget(keyspace.account(key_id), keyspace.used_field(month)) or 0)
