"""What admission and metering leave in Redis, and cost it; what they promise is in `tests/contract`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.redis import keyspace
from serving.adapters.redis.admission import RedisAdmission
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import RedisMeter
from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.month import Month
from serving.errors import AccountsUnavailable, LimitReached
from serving.metrics import Metrics
from tests.support.account_forms import KEPT_ANSWERS_BYTES, RedisAccounts
from tests.support.forwarder import forwarding
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


@asynccontextmanager
async def connected(url: SecretStr) -> AsyncIterator[RedisConnection]:
    made = RedisConnection(url, timeout_seconds=10, metrics=Metrics(CollectorRegistry()))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def connection(server: RedisProcess, client: redis.Redis) -> AsyncIterator[RedisConnection]:
    async with connected(server.url) as made:
        yield made


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
    of_settle = {"evalsha", "get", "hget", "hmget", "xadd", "hdel", "hset", "config|resetstat"}
    assert set(calls(client)) == of_settle


REFUSALS = {
    "rate": principal(rate=1, burst=2, at_once=10),
    "quota": principal(quota=2, at_once=10),
    "concurrent": principal(at_once=2),
}


@pytest.mark.parametrize("limit", REFUSALS)
async def test_who_is_refused_or_asks_what_is_left_costs_no_write_and_no_look_through_leases(
    admission: RedisAdmission, client: redis.Redis, limit: str
) -> None:
    caller = REFUSALS[limit]
    for _ in range(2):
        await admit(admission, caller)
    await admission.limits(caller)  # Redis knows both scripts from here on
    before = client.dump(ACCOUNT)
    client.config_resetstat()

    for _ in range(3):
        await admission.limits(caller)
        with pytest.raises(LimitReached):
            await admit(admission, caller)

    assert calls(client) == {"evalsha": 6, "time": 6, "hmget": 6, "config|resetstat": 1}
    assert client.dump(ACCOUNT) == before


async def test_what_is_left_is_told_without_a_write_also_when_a_lease_has_lapsed(
    admission: RedisAdmission, client: redis.Redis
) -> None:
    await admit(admission, CALLER, pictures=3, lease_seconds=0)
    before = client.hgetall(ACCOUNT)

    state = await admission.limits(CALLER)

    assert (state.quota, state.concurrent) == (100, 10)
    assert client.hgetall(ACCOUNT) == before


async def test_a_lapsed_lease_is_gone_with_the_next_request_and_what_it_charged(
    admission: RedisAdmission, client: redis.Redis
) -> None:
    await admit(admission, CALLER, "lapsing", pictures=3, lease_seconds=0)
    await admit(admission, CALLER, "lasting")

    fields: Any = client.hgetall(ACCOUNT)
    assert [name for name in fields if name.startswith(b"lease:")] == [b"lease:lasting"]
    assert (fields[b"open"], fields[keyspace.used_field(Month.of(datetime.now(UTC))).encode()]) == (
        b"1",
        b"1",
    )


async def test_numbers_that_another_redis_wrote_are_read_and_written_whole_again(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    """Redis 7.2.0 to 7.2.4 writes a script's 300000000 as 3e+8, on which HINCRBY fails."""
    caller = principal(rate=1, burst=100, quota=10**9, at_once=10)
    settled = await admit(admission, caller, pictures=10)
    given_back = await admit(admission, caller, pictures=10)
    used = keyspace.used_field(settled.month)
    for end, level, charged in (
        (lambda: admission.give_back(given_back), 900_000_000, b"299999990"),
        (lambda: meter.settle(event_of(settled, pictures=5), settled, ANSWER), 600_000_000, b"299999995"),
        (lambda: admit(admission, caller, pictures=1), 240_000_000, b"300000001"),
    ):
        client.hset(ACCOUNT, mapping={"level": "3e+8", used: "3e+8"})
        await end()

        fields: Any = client.hgetall(ACCOUNT)
        assert fields[used.encode()] == charged
        assert level <= int(fields[b"level"]) < level + 60_000_000
    assert int(fields[b"open"]) == sum(name.startswith(b"lease:") for name in fields) == 1


async def test_numbers_are_stored_whole_however_round_they_are(
    admission: RedisAdmission, client: redis.Redis
) -> None:
    await admit(admission, principal(rate=1, burst=1000), pictures=500, lease_seconds=10_000)

    fields: Any = client.hgetall(ACCOUNT)
    assert fields[b"level"] == b"30000000000"
    assert all(number.isdigit() for name, number in fields.items() if not name.startswith(b"lease:"))


async def test_a_redis_that_is_full_refuses_an_event_whole(
    admission: RedisAdmission, meter: RedisMeter, client: redis.Redis
) -> None:
    reservation = await admit(admission, CALLER, idempotency=KEY)
    before = client.hgetall(ACCOUNT)
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(AccountsUnavailable) as caught:
            await meter.settle(event_of(reservation), reservation, ANSWER)
    finally:
        client.config_set("maxmemory", "0")

    assert caught.value.reason == "full"
    assert client.hgetall(ACCOUNT) == before
    assert client.xlen(keyspace.usage_stream(PARTITION)) == 0


async def test_kept_answers_take_so_much_of_a_key_and_free_it_when_they_lapse(
    connection: RedisConnection, client: redis.Redis
) -> None:
    accounts = RedisAccounts(client, connection, datetime(2026, 11, 21, 12, 30, tzinfo=UTC))
    answer = RenderedAnswer(random.Random(1).randbytes(KEPT_ANSWERS_BYTES // 2 - 1024), {})
    kept_for = {}

    async def ask_for(name: str) -> bool:
        """Whether it is kept."""
        idempotency = IdempotencyKey(name, "f" * 64)
        reservation = await admit(accounts.admission, CALLER, idempotency=idempotency)
        for _ in range(2):  # an event that is handed over again takes its room once
            await accounts.meter.append(event_of(reservation), idempotency=idempotency, answer=answer)
        return bool(client.hexists(keyspace.answer(CALLER.key_id, idempotency), "answer"))

    for name in ("first", "second", "no room"):
        kept_for[name] = await ask_for(name)
        accounts.advance(3600)
    accounts.advance(KEPT_SECONDS - 2 * 3600)
    kept_for["of the first"] = await ask_for("of the first")
    kept_for["still none"] = await ask_for("still none")

    assert kept_for == {
        "first": True,
        "second": True,
        "no room": False,
        "of the first": True,
        "still none": False,
    }
    room: Any = client.hvals(keyspace.kept_answers(CALLER.key_id))
    assert sum(map(int, room)) <= KEPT_ANSWERS_BYTES
    assert KEPT_SECONDS < client.ttl(keyspace.kept_answers(CALLER.key_id)) <= KEPT_SECONDS + 3600


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
    async with forwarding(server.port) as door, connected(door.redis_url) as connection:
        through_it = RedisAdmission(connection)
        await through_it.limits(CALLER)
        server.freeze()
        leaving = asyncio.create_task(admit(through_it, CALLER, "leaving", pictures=5, idempotency=KEY))
        await door.until_something_was_sent()
        leaving.cancel()
        server.thaw()
        await asyncio.gather(leaving, return_exceptions=True)
        for _ in range(100):  # until the reply has come, and what it took is given back
            if (await through_it.limits(CALLER)).quota == 99:
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
