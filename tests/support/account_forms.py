"""Every form of the accounts (`Admission` with its `UsageMeter`), on a clock that tests move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters import usage_codec
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import START, ManualClock
from serving.adapters.memory.meter import InMemoryMeter
from serving.adapters.redis import keyspace
from serving.adapters.redis.admission import RedisAdmission
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import RedisMeter
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.metrics import Metrics
from serving.ports import Admission, UsageMeter
from tests.support.redis import Client, prime

TIMEOUT_SECONDS = 10.0
MOVED_CLOCK = """
local function now_microseconds()
    return tonumber(redis.call('GET', 'vg:' .. string.match(KEYS[1], '{%d+}') .. ':clock'))
end
"""
KEPT_ANSWERS_BYTES = 256 << 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Accounts(ABC):
    admission: Admission
    meter: UsageMeter

    @property
    @abstractmethod
    def now(self) -> datetime:
        """Of the clock that admits, in UTC."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """So much time passes, to the microsecond."""

    @abstractmethod
    def step_clock(self, now: datetime) -> None:
        """Somebody sets the clock that admits, to another time than it is."""

    @abstractmethod
    def charged(self, key_id: str, month: Month) -> int:
        """Pictures of the month's quota that are billed, or reserved by leases that last."""

    @abstractmethod
    def billed(self, key_id: str) -> Sequence[UsageEvent]:
        """As the ledger will have them, each event once."""


class NewAccounts(Protocol):
    def __call__(self, start: datetime = START) -> AbstractAsyncContextManager[Accounts]: ...


class InMemoryAccounts(Accounts):
    def __init__(self, start: datetime) -> None:
        self._clock = ManualClock(start)
        self.admission: InMemoryAdmission = InMemoryAdmission(
            self._clock, kept_answers_bytes=KEPT_ANSWERS_BYTES
        )
        self.meter: InMemoryMeter = InMemoryMeter(self.admission)

    @property
    def now(self) -> datetime:
        return self._clock.now()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def step_clock(self, now: datetime) -> None:
        self._clock.set_wall_clock(now)

    def charged(self, key_id: str, month: Month) -> int:
        return self.admission.charged(key_id, month)

    def billed(self, key_id: str) -> Sequence[UsageEvent]:
        return [event for event in self.meter.recent() if event.key_id == key_id]


class RedisAccounts(Accounts):
    """Moves Redis' clock; `client` looks at what lies there, past the adapters."""

    def __init__(self, client: Client, connection: RedisConnection, start: datetime) -> None:
        self.client = client
        self.admission: RedisAdmission = RedisAdmission(connection, clock=MOVED_CLOCK)
        self.meter: RedisMeter = RedisMeter(
            connection, kept_answers_bytes=KEPT_ANSWERS_BYTES, clock=MOVED_CLOCK
        )
        self.step_clock(start)

    @property
    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self.step_clock(self.now + timedelta(seconds=seconds))

    def step_clock(self, now: datetime) -> None:
        self._now = now
        microseconds = (now - _EPOCH) // timedelta(microseconds=1)
        pipeline = self.client.pipeline(transaction=False)
        for partition in range(keyspace.PARTITIONS):
            pipeline.set(f"vg:{{{partition}}}:clock", microseconds)
        pipeline.execute()

    def charged(self, key_id: str, month: Month) -> int:
        fields: Any = self.client.hgetall(keyspace.account(key_id))
        leases = [value.decode().split() for name, value in fields.items() if name.startswith(b"lease:")]
        now_us = (self.now - _EPOCH) // timedelta(microseconds=1)
        lapsed = sum(
            int(pictures)
            for since_us, for_us, pictures, its_month in leases
            if its_month == str(month) and abs(now_us - int(since_us)) >= int(for_us)
        )
        return int(fields.get(keyspace.used_field(month).encode(), 0)) - lapsed

    def billed(self, key_id: str) -> Sequence[UsageEvent]:
        entries: Any = self.client.xrange(keyspace.usage_stream(keyspace.partition_of(key_id)))
        events = [usage_codec.decode(fields[b"e"]) for _, fields in entries]
        once = {event.request_id: event for event in events if event.key_id == key_id}
        return list(once.values())


def in_memory() -> NewAccounts:
    @asynccontextmanager
    async def open_accounts(start: datetime = START) -> AsyncIterator[Accounts]:
        yield InMemoryAccounts(start)

    return open_accounts


def on_redis(url: SecretStr, client: Client) -> NewAccounts:
    """client: of the same server, for tests to look past the adapters."""

    @asynccontextmanager
    async def open_accounts(start: datetime = START) -> AsyncIterator[Accounts]:
        prime(client)
        metrics = Metrics(CollectorRegistry())
        connection = RedisConnection(url, timeout_seconds=TIMEOUT_SECONDS, metrics=metrics)
        try:
            yield RedisAccounts(client, connection, start)
        finally:
            await connection.close()

    return open_accounts
