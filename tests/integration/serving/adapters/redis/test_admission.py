"""What admission and metering leave in Redis, and cost it; what they promise is in `tests/contract`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry

from serving.adapters.redis import keyspace
from serving.adapters.redis.admission import RedisAdmission
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import RedisMeter
from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey
from serving.domain.month import Month
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics
from tests.support.redis import RedisProcess, prime, running_redis
from tests.support.requests import ANSWER, admit, event_of, principal

KEY = IdempotencyKey("mine", "f" * 64)
CALLER = principal(quota=100, at_once=10)
PARTITION = keyspace.partition_of(CALLER.key_id)
ACCOUNT = keyspace.account(CALLER.key_id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture
def client(server: RedisProcess) -> Iterator[redis.Redis]:
    with server.client() as made:
        prime(made, "epoch-1")
        yield made


@pytest.fixture
async def connection(server: RedisProcess, client: redis.Redis) -> AsyncIterator[RedisConnection]:
    made = RedisConnection(server.url, timeout_seconds=10, metrics=Metrics(CollectorRegistry()))
    yield made
    await made.close()


@pytest.fixture
def admission(connection: RedisConnection) -> RedisAdmission:
    return RedisAdmission(connection)


@pytest.fixture
def meter(connection: RedisConnection) -> RedisMeter:
    return RedisMeter(connection)


def calls(client: redis.Redis) -> dict[str, int]:
    """How often each command was called, also by scripts."""
    stats: dict[str, Any] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


async def test_the_hot_path_asks_redis_for_little(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    await meter.settle(event_of(first := await admit(admission, CALLER)), first, ANSWER)
    client.config_resetstat()

    reservation = await admit(admission, CALLER)
    of_admit = calls(client)
    client.config_resetstat()
    await meter.settle(event_of(reservation), reservation, ANSWER)

    assert of_admit.items() >= {"evalsha": 1, "time": 1, "hmget": 1, "hset": 1}.items()
    assert set(of_admit) == {"evalsha", "time", "hmget", "hset", "config|resetstat"}
    assert set(calls(client)) == {"evalsha", "get", "hget", "hdel", "hincrby", "xadd", "config|resetstat"}


async def test_idle_keys_vanish_but_not_before_two_months_are_over(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    reservation = await admit(admission, CALLER, idempotency=KEY)
    of_account = client.ttl(ACCOUNT)
    await meter.settle(event_of(reservation), reservation, ANSWER)
    client.delete(ACCOUNT)
    await meter.append(event_of(reservation), idempotency=None, answer=None)

    for ttl in (of_account, client.ttl(ACCOUNT)):
        assert timedelta(days=62).total_seconds() < ttl < timedelta(days=100).total_seconds()
    assert KEPT_SECONDS - 60 < client.ttl(keyspace.answer(CALLER.key_id, KEY)) <= KEPT_SECONDS


async def test_a_client_that_leaves_while_it_is_admitted_takes_nothing(
    server: RedisProcess, admission: RedisAdmission, client: redis.Redis
) -> None:
    await admit(admission, CALLER)
    server.freeze()
    leaving = asyncio.create_task(admit(admission, CALLER, "leaving", pictures=5, idempotency=KEY))
    await asyncio.sleep(0.05)  # it is on its way
    leaving.cancel()
    server.thaw()
    await asyncio.gather(leaving, return_exceptions=True)

    for _ in range(100):  # until the reply has come, and what it took is given back
        if (await admission.limits(CALLER)).quota == 99:
            break
    await admit(admission, CALLER, "another", idempotency=KEY)

    state = await admission.limits(CALLER)
    assert (state.tokens, state.quota, state.concurrent) == (8, 98, 8)


@pytest.mark.parametrize("verb", ["admit", "limits", "settle", "append"])
async def test_a_redis_that_was_flushed_is_asked_nothing(
    connection: RedisConnection,
    admission: RedisAdmission,
    meter: RedisMeter,
    client: redis.Redis,
    verb: str,
) -> None:
    reservation = await admit(admission, CALLER)
    event = event_of(reservation)
    client.flushall()
    ask: dict[str, Callable[[], Awaitable[object]]] = {
        "admit": lambda: admit(admission, CALLER),
        "limits": lambda: admission.limits(CALLER),
        "settle": lambda: meter.settle(event, reservation, ANSWER),
        "append": lambda: meter.append(event, idempotency=KEY, answer=ANSWER),
    }

    with pytest.raises(AccountsUnavailable) as caught:
        await ask[verb]()

    assert caught.value.reason == "unprimed"
    assert client.dbsize() == 0
    counted = connection.metrics.registry.get_sample_value(
        "visiongate_accounts_failures_total", {"reason": "unprimed"}
    )
    assert counted == 1


async def test_giving_back_to_a_redis_that_is_gone_raises_nothing(
    server: RedisProcess, admission: RedisAdmission
) -> None:
    reservation = await admit(admission, CALLER)
    server.kill()

    await admission.give_back(reservation)

    server.start()


async def test_what_is_appended_says_where_it_is(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    reservation = await admit(admission, CALLER, pictures=3)

    first = await meter.append(event_of(reservation), idempotency=None, answer=None)
    again = await meter.append(event_of(reservation), idempotency=None, answer=None)

    entries: Any = client.xrange(keyspace.usage_stream(PARTITION))
    assert [name.decode() for name, _ in entries] == [first.stream_id, again.stream_id]
    assert {first.epoch, again.epoch} == {"epoch-1"}
    # The lease became the first entry. The second is charged too: the consumer, who finds it, undoes that.
    month = keyspace.used_field(Month.of(reservation.admitted_at))
    assert client.hget(ACCOUNT, month) == b"6"


async def test_what_a_client_has_got_already_is_billed_whoever_has_its_key(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    of_another = await admit(admission, CALLER, idempotency=KEY)
    journalled = await admit(admission, CALLER)

    await meter.append(event_of(journalled), idempotency=KEY, answer=ANSWER)

    assert client.xlen(keyspace.usage_stream(PARTITION)) == 1
    assert client.hget(keyspace.answer(CALLER.key_id, KEY), "owner") == of_another.request_id.encode()


async def test_an_account_is_small(admission: RedisAdmission, client: redis.Redis) -> None:
    for _ in range(10):
        await admit(admission, CALLER)

    assert int(client.memory_usage(ACCOUNT) or 0) < 1024
