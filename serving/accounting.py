"""Where a gateway keeps its keys' accounts: in Redis, with a way to go on without it, or in itself alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from serving.adapters.accounts import Accounts
from serving.adapters.key_changes import KeyChangeListener, KeyChangePublisher, LocalKeyChanges
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.meter import InMemoryMeter
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.key_changes import KeyChangeSubscription, RedisKeyChanges
from serving.adapters.sql.ledger import SqlLedger
from serving.metering.priming import priming
from serving.metrics import Metrics
from serving.ports import Admission, Clock, UsageMeter
from serving.settings import Settings


@dataclass(frozen=True, slots=True)
class Accounting:
    """`start`, then all of `runs`, by what they look after, in the background, then `close`.

    is_degraded: it goes on without Redis.
    """

    admission: Admission
    meter: UsageMeter
    key_changes: KeyChangePublisher
    start: Callable[[], Awaitable[None]]
    runs: Mapping[str, Callable[[], Awaitable[None]]]
    close: Callable[[], Awaitable[None]]
    is_degraded: Callable[[], bool]


def shared_accounting(
    settings: Settings, *, ledger: SqlLedger, listener: KeyChangeListener, clock: Clock, metrics: Metrics
) -> Accounting:
    """One account a key, whatever gateway asks. listener: told of keys that change on other gateways."""
    connection = RedisConnection(
        settings.redis_address, timeout_seconds=settings.redis_timeout_seconds, metrics=metrics
    )
    accounts = Accounts(
        connection,
        prime=priming(connection, ledger).prime,
        used_by_ledger=ledger.used,
        journal_folder=settings.run_directory / "journal",
        clock=clock,
        metrics=metrics,
        call_timeout_seconds=settings.redis_timeout_seconds,
        expected_gateways=settings.gateway_replicas,
        replicas_to_wait_for=settings.redis_replicas_to_wait_for,
    )
    subscription = KeyChangeSubscription(connection, listener, clock)

    async def close() -> None:
        async with AsyncExitStack() as last_first:
            last_first.push_async_callback(connection.close)
            last_first.push_async_callback(accounts.close)

    return Accounting(
        accounts.admission,
        accounts.meter,
        RedisKeyChanges(connection),
        accounts.start,
        {"the accounts": accounts.run, "changed keys": subscription.run},
        close,
        is_degraded=lambda: accounts.in_fallback,
    )


def own_accounting(*, listener: KeyChangeListener, clock: Clock) -> Accounting:
    """For a gateway that is alone and bills nobody: forgotten with it."""
    admission = InMemoryAdmission(clock)

    async def nothing() -> None:
        pass

    return Accounting(
        admission,
        InMemoryMeter(admission),
        LocalKeyChanges(listener),
        nothing,
        {},
        nothing,
        is_degraded=lambda: False,
    )
