"""A gateway's accounts on a real Redis, some of which is broken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.accounts import Accounts
from serving.adapters.journal_count import count_journals
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.gateways import LiveGateways
from serving.clock import SystemClock
from serving.domain.inference import RenderedAnswer
from serving.domain.month import Month
from serving.domain.tenant import Principal
from serving.errors import QuotaExceeded
from serving.metrics import Metrics
from serving.ports import Reservation
from tests.support.redis import Client, RedisProcess, prime, running_redis
from tests.support.tiers import make_tier
from tests.support.usage_events import make_event

TIMEOUT_SECONDS = 1.0
ANSWER = RenderedAnswer(b"{}", {})
TIER = make_tier(rate=6000, burst=100, monthly_quota=100)
BROKEN, WELL = (Principal(key_id, "ada", TIER, None) for key_id in ("key_broken", "key_well"))


@pytest.fixture(params=["redis-6.2", "redis-7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis(request.param, tmp_path / "redis") as process:
        yield process


@pytest.fixture
def client(server: RedisProcess) -> Iterator[Client]:
    with server.client() as client:
        prime(client)
        yield client


NewAccounts = Callable[..., AbstractAsyncContextManager[Accounts]]


@pytest.fixture
def accounts_of(server: RedisProcess, client: Client, tmp_path: Path) -> NewAccounts:
    async def used_by_ledger(key_id: str, month: Month) -> int:
        return 99

    async def nothing_to_prime() -> None:
        pass

    @asynccontextmanager
    async def open_accounts(*, replicas: int = 0) -> AsyncIterator[Accounts]:
        metrics = Metrics(CollectorRegistry())
        connection = RedisConnection(server.url, timeout_seconds=TIMEOUT_SECONDS, metrics=metrics)
        accounts = Accounts(
            connection,
            prime=nothing_to_prime,
            used_by_ledger=used_by_ledger,
            journal_folder=tmp_path / "journal",
            clock=SystemClock(),
            metrics=metrics,
            call_timeout_seconds=TIMEOUT_SECONDS,
            expected_gateways=1,
            replicas_to_wait_for=replicas,
        )
        await accounts.start()
        try:
            yield accounts
        finally:
            await accounts.close()
            await connection.close()

    return open_accounts


async def admit(accounts: Accounts, caller: Principal, request_id: str) -> Reservation:
    admitted = await accounts.admission.admit(caller, request_id=request_id, pictures=1, lease_seconds=30)
    assert isinstance(admitted, Reservation)
    return admitted


async def test_a_key_whose_account_is_broken_is_served_alone_and_the_others_by_redis(
    client: Client, accounts_of: NewAccounts, tmp_path: Path
) -> None:
    client.set(keyspace.account(BROKEN.key_id), "no hash")
    async with accounts_of() as accounts:
        assert not accounts.in_fallback
        for caller, request_id in ((BROKEN, "req_1"), (WELL, "req_2")):
            reservation = await admit(accounts, caller, request_id)
            await accounts.meter.settle(make_event(request_id, key_id=caller.key_id), reservation, ANSWER)
            assert not accounts.in_fallback
        streams = [keyspace.usage_stream(number) for number in range(keyspace.PARTITIONS)]
        assert sum(int(str(client.xlen(stream))) for stream in streams) == 1
        assert count_journals(tmp_path / "journal").waiting == 1
        with pytest.raises(QuotaExceeded):  # the ledger knows of 99 pictures
            await admit(accounts, BROKEN, "req_3")
        await admit(accounts, WELL, "req_4")


async def test_without_redis_a_key_that_was_never_seen_has_what_the_ledger_leaves_it(
    server: RedisProcess, accounts_of: NewAccounts
) -> None:
    async with accounts_of() as accounts:
        server.kill()
        await admit(accounts, WELL, "req_1")
        assert accounts.in_fallback
        with pytest.raises(QuotaExceeded):
            await admit(accounts, WELL, "req_2")


async def test_a_partition_without_its_replica_is_not_well(
    accounts_of: NewAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def beat(_: LiveGateways) -> None:
        """In a cluster, it may go to another server, which has its replica."""

    monkeypatch.setattr(LiveGateways, "beat", beat)
    async with accounts_of() as accounts:
        assert not accounts.in_fallback
    async with accounts_of(replicas=1) as accounts:
        assert accounts.in_fallback
