"""Real Redis in every kind of trouble, under load: nobody is refused, nothing is lost or billed twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.accounts import Accounts
from serving.adapters.redis.client import RedisConnection
from serving.clock import SystemClock
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.month import Month
from serving.domain.tenant import Principal
from serving.errors import (
    BackendUnavailable,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeyUnsure,
    QuotaExceeded,
    RateLimited,
)
from serving.metrics import Metrics
from serving.ports import Reservation
from tests.support.forwarder import forwarding
from tests.support.redis import DURABLE, Kind, RedisProcess, running_redis
from tests.support.tiers import make_tier
from tests.support.traffic import ANSWER, Book, Traffic, pictures_charged, until
from tests.support.usage_events import make_event

TIMEOUT_SECONDS = 0.25
PATIENT_SECONDS = 5.0
"""A timeout for tests that count, and mean no trouble but what they make."""
A_SECOND = 2.0
"""And another, for a machine that is busy with other tests."""
KEY = "key_trouble"
BUSY = Principal(KEY, "ada", make_tier(rate=12_000, burst=40), None)
SLOW = Principal(KEY, "ada", make_tier(rate=1, burst=10, monthly_quota=12), None)
NOBODY = "1"
"""A port on which there is no Redis."""
SYNC_AT_ONCE = ("CONFIG", "SET", "repl-diskless-sync-delay", "0")


async def _nobody_knows(_key_id: str, _month: Month) -> int:
    raise BackendUnavailable


@dataclass
class Gateway:
    accounts: Accounts
    connection: RedisConnection
    metrics: Metrics

    def sample(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(f"visiongate_{name}")
        assert value is not None
        return value

    async def away(self) -> float:
        return await until(lambda: self.accounts.in_fallback)

    async def back(self) -> float:
        return await until(lambda: not self.accounts.in_fallback)

    async def handed_over(self) -> None:
        await until(lambda: self.sample("journal_events") == 0)


class Place:
    """Gateways, a book that is the ledger, and the folder that they share."""

    def __init__(self, url: SecretStr, server: RedisProcess, folder: Path, stack: AsyncExitStack) -> None:
        self.url = url
        self.server = server
        self.folder = folder
        self._stack = stack
        self.book = Book(self._connect(Metrics(CollectorRegistry()), timeout_seconds=PATIENT_SECONDS))

    async def open_gateway(
        self, *, expected: int = 1, replicas: int = 0, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> Gateway:
        metrics = Metrics(CollectorRegistry())
        connection = self._connect(metrics, timeout_seconds=timeout_seconds)
        accounts = Accounts(
            connection,
            prime=self._prime,
            used_by_ledger=_nobody_knows,
            journal_folder=self.folder / "journal",
            clock=SystemClock(),
            metrics=metrics,
            call_timeout_seconds=timeout_seconds,
            expected_gateways=expected,
            replicas_to_wait_for=replicas,
        )
        await accounts.start()
        self._stack.push_async_callback(accounts.close)
        running = asyncio.create_task(accounts.run())
        self._stack.callback(running.cancel)
        return Gateway(accounts, connection, metrics)

    def charged(self) -> int:
        with self.server.client() as client:
            return pictures_charged(client, KEY, Month.of(datetime.now(UTC)))

    def _connect(self, metrics: Metrics, *, timeout_seconds: float) -> RedisConnection:
        connection = RedisConnection(self.url, timeout_seconds=timeout_seconds, metrics=metrics)
        self._stack.push_async_callback(connection.close)
        return connection

    async def _prime(self) -> None:
        with self.server.client() as client:
            await asyncio.to_thread(self.book.prime, client)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisProcess]:
    kind: Kind = getattr(request, "param", "redis-7")
    with running_redis(kind, tmp_path / "redis", *DURABLE) as process:
        yield process


@pytest.fixture
async def place(server: RedisProcess, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(server.url, server, tmp_path, stack)


def ask(server: RedisProcess, *command: str) -> None:
    with server.client() as client:
        client.execute_command(*command)


@dataclass(frozen=True)
class Trouble:
    begin: Callable[[RedisProcess], None]
    end: Callable[[RedisProcess], None]


TROUBLES = {
    "down": Trouble(RedisProcess.kill, RedisProcess.start),
    "slow": Trouble(RedisProcess.freeze, RedisProcess.thaw),
    "read-only": Trouble(
        lambda server: ask(server, "REPLICAOF", "127.0.0.1", NOBODY),
        lambda server: ask(server, "REPLICAOF", "NO", "ONE"),
    ),
    "full": Trouble(
        lambda server: ask(server, "CONFIG", "SET", "maxmemory", "1"),
        lambda server: ask(server, "CONFIG", "SET", "maxmemory", "0"),
    ),
}


@pytest.mark.parametrize("server", ["redis-6.2", "redis-7"], indirect=True)
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_trouble_refuses_nobody_and_loses_nothing(place: Place, trouble: Trouble) -> None:
    gateway = await place.open_gateway()
    traffic = Traffic([gateway.accounts], BUSY)
    async with traffic.flowing():
        await traffic.more(30)
        await place.book.read()
        trouble.begin(place.server)
        assert await gateway.away() < A_SECOND
        await traffic.more(30)
        assert gateway.sample("accounts_fallback") == 1
        assert gateway.sample("journal_events") > 0
        trouble.end(place.server)
        assert await gateway.back() < A_SECOND
        await traffic.more(30)
    await gateway.handed_over()
    await all_in_the_book(place, traffic)
    assert sum(traffic.settled.values()) <= traffic.most_pictures()
    assert traffic.refusals > 0
    assert gateway.sample("accounts_fallback") == 0
    assert list((place.folder / "journal").iterdir()) == []


async def test_a_restart_is_over_before_most_have_noticed(place: Place) -> None:
    gateway = await place.open_gateway()
    traffic = Traffic([gateway.accounts], BUSY)
    async with traffic.flowing():
        await traffic.more(30)
        place.server.kill()
        place.server.start()
        await traffic.more(30)
        await gateway.back()
        await traffic.more(30)
    await gateway.handed_over()
    await all_in_the_book(place, traffic)


async def test_a_flush_loses_nothing_that_the_ledger_had_not_got(place: Place) -> None:
    gateway = await place.open_gateway()
    traffic = Traffic([gateway.accounts], BUSY)
    async with traffic.flowing():
        await traffic.more(30)
        await place.book.read()
        await traffic.more(30)
        ask(place.server, "FLUSHALL")
        assert await gateway.away() < A_SECOND
        assert await gateway.back() < A_SECOND
        await traffic.more(30)
    await gateway.handed_over()
    await all_in_the_book(place, traffic)


async def all_in_the_book(place: Place, traffic: Traffic) -> None:
    """Each event once, and each charged once; what was appended twice takes its time to be given back."""
    billed = sum(traffic.settled.values())
    async with asyncio.timeout(20):
        while place.book.pictures.keys() != traffic.settled.keys() or place.charged() != billed:
            await place.book.read_all()
            await asyncio.sleep(0.01)
    assert place.book.pictures == traffic.settled


async def test_a_failover_that_lost_the_latest_writes_loses_no_event(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        old, new = (
            stack.enter_context(running_redis("redis-7", tmp_path / name, *DURABLE))
            for name in ("old", "new")
        )
        door = await stack.enter_async_context(forwarding(old.port))
        place = Place(SecretStr(f"redis://127.0.0.1:{door.port}/0"), old, tmp_path, stack)
        gateway = await place.open_gateway()
        traffic = Traffic([gateway.accounts], BUSY)
        ask(old, *SYNC_AT_ONCE)
        ask(new, "REPLICAOF", "127.0.0.1", str(old.port))
        async with traffic.flowing():
            await traffic.more(30)
            await until(lambda: has_all_of(new, old))
            ask(new, "REPLICAOF", "NO", "ONE")
            await traffic.more(30)
            old.kill()
            await gateway.away()
            await traffic.more(30)
            place.server = new
            door.lead_to(new.port)
            assert await gateway.back() < A_SECOND
            await traffic.more(30)
        await gateway.handed_over()
        await all_in_the_book(place, traffic)


def has_all_of(replica: RedisProcess, master: RedisProcess) -> bool:
    with replica.client() as client:
        info: dict[str, Any] = client.info("replication")
    return bool(info["role"] == "slave" and info["master_link_status"] == "up")


async def test_without_the_replica_that_was_asked_for_events_are_journaled_until_there_is_one(
    place: Place, tmp_path: Path
) -> None:
    ask(place.server, *SYNC_AT_ONCE)
    gateway = await place.open_gateway(replicas=1)
    traffic = Traffic([gateway.accounts], BUSY)
    async with traffic.flowing():
        await gateway.away()
        await traffic.more(30)
        assert gateway.accounts.in_fallback
        with running_redis("redis-7", tmp_path / "replica") as replica:
            ask(replica, "REPLICAOF", "127.0.0.1", str(place.server.port))
            await gateway.back()
            await traffic.more(30)
            await gateway.handed_over()
            await until(lambda: has_all_of(replica, place.server))
        await gateway.away()
        await traffic.more(30)
    await place.book.read_all()
    assert place.book.pictures.keys() <= traffic.settled.keys()
    with running_redis("redis-7", tmp_path / "replica") as replica:
        ask(replica, "REPLICAOF", "127.0.0.1", str(place.server.port))
        await gateway.back()
        await gateway.handed_over()
        await all_in_the_book(place, traffic)


async def test_two_gateways_admit_one_bucket_between_them(place: Place) -> None:
    gateways = [await place.open_gateway(expected=2) for _ in range(2)]
    traffic = Traffic([gateway.accounts for gateway in gateways], BUSY)
    async with traffic.flowing():
        await traffic.more(30)
        place.server.kill()
        for gateway in gateways:
            await gateway.away()
        await traffic.more(150)
        place.server.start()
        for gateway in gateways:
            await gateway.back()
        await traffic.more(30)
    for gateway in gateways:
        await gateway.handed_over()
    await all_in_the_book(place, traffic)
    assert sum(traffic.settled.values()) <= traffic.most_pictures()


async def test_a_gateway_that_starts_without_redis_serves_at_once(place: Place) -> None:
    place.server.kill()
    gateway = await place.open_gateway()
    assert gateway.accounts.in_fallback
    traffic = Traffic([gateway.accounts], BUSY)
    await traffic.request()
    assert len(traffic.settled) == 1
    place.server.start()
    await gateway.back()
    await gateway.handed_over()
    await all_in_the_book(place, traffic)


async def admit(
    gateway: Gateway,
    request_id: str,
    *,
    pictures: int = 1,
    principal: Principal = SLOW,
    idempotency: IdempotencyKey | None = None,
) -> Reservation | RenderedAnswer:
    return await gateway.accounts.admission.admit(
        principal, request_id=request_id, pictures=pictures, lease_seconds=10, idempotency=idempotency
    )


async def serve(
    gateway: Gateway, request_id: str, *, pictures: int = 1, idempotency: IdempotencyKey | None = None
) -> RenderedAnswer:
    admitted = await admit(gateway, request_id, pictures=pictures, idempotency=idempotency)
    if isinstance(admitted, RenderedAnswer):
        return admitted
    return await settle(gateway, admitted)


async def settle(gateway: Gateway, reservation: Reservation) -> RenderedAnswer:
    request_id = reservation.request_id
    event = make_event(
        request_id, key_id=KEY, pictures=reservation.pictures, admitted_at=reservation.admitted_at
    )
    answer = RenderedAnswer(request_id.encode(), ANSWER.headers)
    await gateway.accounts.meter.settle(event, reservation, answer)
    return answer


async def test_the_bucket_goes_on_where_it_was_there_and_back(place: Place) -> None:
    gateway = await place.open_gateway(timeout_seconds=PATIENT_SECONDS)
    await serve(gateway, "req_1", pictures=4)
    place.server.kill()
    local = await admit(gateway, "req_2", pictures=3)
    assert isinstance(local, Reservation)
    assert local.limits.tokens == 3
    with pytest.raises(RateLimited):
        await admit(gateway, "req_3", pictures=4)
    given_back = await admit(gateway, "req_4", pictures=2)
    assert isinstance(given_back, Reservation)
    await gateway.accounts.admission.give_back(given_back)
    place.server.start()
    await gateway.back()
    assert (await gateway.accounts.admission.limits(SLOW)).tokens == 3


async def test_what_was_left_of_the_quota_is_not_exceeded(place: Place) -> None:
    principal = Principal(KEY, "ada", make_tier(rate=60, burst=100, monthly_quota=12), None)
    gateway = await place.open_gateway(timeout_seconds=PATIENT_SECONDS)
    admitted = await admit(gateway, "req_1", pictures=9, principal=principal)
    assert isinstance(admitted, Reservation)
    place.server.kill()
    await admit(gateway, "req_2", pictures=3, principal=principal)
    with pytest.raises(QuotaExceeded):
        await admit(gateway, "req_3", pictures=1, principal=principal)


async def test_an_answer_is_given_again_without_redis_and_after(place: Place) -> None:
    again, other = IdempotencyKey("again", "a" * 64), IdempotencyKey("again", "b" * 64)
    gateway = await place.open_gateway(timeout_seconds=PATIENT_SECONDS)
    before, under_way = IdempotencyKey("before", "a" * 64), IdempotencyKey("under way", "a" * 64)
    await serve(gateway, "req_0", idempotency=before)
    to_settle = await admit(gateway, "req_1", idempotency=again)
    reservation = await admit(gateway, "req_5", idempotency=under_way)
    assert isinstance(to_settle, Reservation)
    assert isinstance(reservation, Reservation)
    place.server.kill()
    await settle(gateway, to_settle)
    assert (await serve(gateway, "req_2", idempotency=before)).body == b"req_0"
    repeated = await serve(gateway, "req_3", idempotency=again)
    assert (repeated.body, repeated.replayed) == (b"req_1", True)
    with pytest.raises(IdempotencyKeyReused):
        await serve(gateway, "req_4", idempotency=other)
    with pytest.raises(IdempotencyKeyInUse):
        await serve(gateway, "req_6", idempotency=under_way)
    with pytest.raises(IdempotencyKeyUnsure):
        await serve(gateway, "req_7", idempotency=IdempotencyKey("unheard of", "a" * 64))
    place.server.start()
    await gateway.back()
    assert (await serve(gateway, "req_7", idempotency=again)).body == b"req_1"
    with pytest.raises(IdempotencyKeyInUse):
        await serve(gateway, "req_8", idempotency=under_way)
    await gateway.accounts.admission.give_back(reservation)
    assert (await serve(gateway, "req_9", idempotency=under_way)).body == b"req_9"
    await gateway.handed_over()
    elsewhere = await place.open_gateway(timeout_seconds=PATIENT_SECONDS)
    assert (await serve(elsewhere, "req_10", idempotency=again)).body == b"req_1"
    await place.book.read_all()
    assert place.book.pictures.keys() == {"req_0", "req_1", "req_9"}
