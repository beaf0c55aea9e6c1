from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.redis import keyspace
from serving.adapters.redis.charges import KEYS_AT_A_TIME, BucketCharges
from serving.adapters.redis.client import RedisConnection
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics
from tests.support.redis import RedisProcess, prime, running_redis
from tests.support.tiers import make_tier

NOW = 1_795_266_255_275_058
TOKEN = 60_000_000
KEY = "key_charged"
TIER = make_tier(rate=60, burst=10)  # a token a second


@pytest.fixture(scope="module", params=["redis-6.2", "redis-7"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisProcess]:
    with running_redis(request.param, tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture
async def connection(server: RedisProcess) -> AsyncIterator[RedisConnection]:
    with server.client() as client:
        prime(client)
    connection = RedisConnection(server.url, timeout_seconds=10.0, metrics=Metrics(CollectorRegistry()))
    yield connection
    await connection.close()


Levels = Callable[..., list[int | None]]


@pytest.fixture
def levels(server: RedisProcess) -> Levels:
    """Of these keys' buckets, in units; None where there is none."""

    def read(*key_ids: str) -> list[int | None]:
        with server.client() as client:
            pipeline = client.pipeline(transaction=False)
            for key_id in key_ids:
                pipeline.hget(keyspace.account(key_id), "level")
            return [None if level is None else int(level) for level in pipeline.execute()]

    return read


def at(microseconds: int) -> str:
    return f"local function now_microseconds() return {microseconds} end"


def charges_of(connection: RedisConnection, *, now: int = NOW) -> BucketCharges:
    return BucketCharges(connection, clock=at(now))


@pytest.mark.parametrize(
    ("before", "pictures", "level"),
    [
        (None, 3, 7 * TOKEN),  # never seen: it was full
        ((5 * TOKEN, NOW), 3, 2 * TOKEN),
        ((5 * TOKEN, NOW - 2_000_000), 3, 4 * TOKEN),  # refilled first
        ((5 * TOKEN + 1, NOW - 1), 3, 2 * TOKEN + 61),  # to the unit
        ((5 * TOKEN, NOW - 3_600_000_000), 3, 7 * TOKEN),  # and no further than full
        ((2 * TOKEN, NOW), 3, 0),  # never below empty
        ((5 * TOKEN, NOW + 2_000_000), 3, 2 * TOKEN),  # a clock that stepped back refills nothing
    ],
)
async def test_a_bucket_is_refilled_and_then_charged(
    server: RedisProcess,
    connection: RedisConnection,
    before: tuple[int, int] | None,
    pictures: int,
    level: int,
) -> None:
    account = keyspace.account(KEY)
    charges = charges_of(connection)
    with server.client() as client:
        if before is not None:
            client.hset(account, mapping={"level": before[0], "filled_at": before[1]})
        charges.add(KEY, TIER, pictures)
        assert await charges.charge()
        after: Any = client.hgetall(account)
        assert after == {b"level": b"%d" % level, b"filled_at": b"%d" % NOW}
        assert not await charges.charge()
        assert client.hgetall(account) == after


async def test_what_was_given_back_is_not_charged(connection: RedisConnection, levels: Levels) -> None:
    charges = charges_of(connection)
    charges.add(KEY, TIER, 3)
    charges.add(KEY, TIER, 2)
    charges.take_back(KEY, 4)
    await charges.charge()
    assert levels(KEY) == [9 * TOKEN]
    charges.add(KEY, TIER, 1)
    charges.take_back(KEY, 1)
    charges.take_back(KEY, 1)
    assert not await charges.charge()


async def test_many_keys_of_all_partitions_are_charged(connection: RedisConnection, levels: Levels) -> None:
    charges = charges_of(connection)
    keys = [f"key_{number}" for number in range(keyspace.PARTITIONS * KEYS_AT_A_TIME * 2)]
    for number, key_id in enumerate(keys):
        charges.add(key_id, TIER, number % 10)
    await charges.charge()
    assert levels(*keys) == [(10 - number % 10) * TOKEN for number in range(len(keys))]


async def test_a_partition_without_its_epoch_is_not_charged_and_its_keys_stay_owed(
    server: RedisProcess, connection: RedisConnection, levels: Levels
) -> None:
    epoch = keyspace.epoch(keyspace.partition_of(KEY))
    with server.client() as client:
        client.delete(epoch)
        charges = charges_of(connection)
        charges.add(KEY, TIER, 3)
        with pytest.raises(AccountsUnavailable):
            await charges.charge()
        assert levels(KEY) == [None]
        client.set(epoch, "epoch-2")
    assert await charges.charge()
    assert levels(KEY) == [7 * TOKEN]


@pytest.mark.parametrize(
    "break_account",
    [
        lambda client, account: client.set(account, "no hash"),
        lambda client, account: client.hset(account, "level", "no number"),
    ],
    ids=["no hash", "no number"],
)
async def test_a_key_whose_account_is_broken_keeps_nobody_else_from_being_charged(
    server: RedisProcess,
    connection: RedisConnection,
    levels: Levels,
    break_account: Callable[[Any, str], object],
) -> None:
    others = [f"key_other_{number}" for number in range(keyspace.PARTITIONS * 4)]
    with server.client() as client:
        break_account(client, keyspace.account("key_broken"))
        client.delete(*map(keyspace.account, others))
        charges = charges_of(connection)
        for key_id in (*others[:30], "key_broken", *others[30:]):
            charges.add(key_id, TIER, 3)
        assert await charges.charge()
        assert levels(*others) == [7 * TOKEN] * len(others)
        assert not await charges.charge()
        client.delete(keyspace.account("key_broken"))
