"""Requests through the accounts of some gateways, and a ledger that reads the real stream."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import redis

from serving.adapters.accounts import Accounts
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import Handled, RedisUsageStream
from serving.domain.inference import RenderedAnswer
from serving.domain.month import Month
from serving.domain.tenant import Principal
from serving.errors import RateLimited
from serving.ports import Reservation
from tests.support.usage_events import make_event

ANSWER = RenderedAnswer(b'{"predictions": []}', {"content-type": "application/json"})
LEASE_SECONDS = 10.0
CLIENTS = 4
GIVEN_BACK_ONE_IN = 7


async def until(is_so: Callable[[], bool], *, within_seconds: float = 20.0) -> float:
    """How long it took, in seconds. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(within_seconds):
        while not is_so():  # noqa: ASYNC110 - what a server or a file system is like has no event
            await asyncio.sleep(0.005)
    return time.monotonic() - began


class Traffic:
    """Clients that send one request after the other, and wait where they are told to.

    Whatever a request raises, but for a reached limit, ends the traffic and fails the test.
    settled: pictures of each request that was answered.
    """

    def __init__(self, gateways: Sequence[Accounts], principal: Principal) -> None:
        self.settled: dict[str, int] = {}
        self.refusals = 0
        self._gateways = itertools.cycle(gateways)
        self._principal = principal
        self._numbers = itertools.count(1)
        self._began_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        ending = asyncio.Event()

        async def client() -> None:
            while not ending.is_set():
                await self.request()

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())
            try:
                yield
            finally:
                ending.set()

    async def more(self, requests: int) -> None:
        """Return once so many more were answered."""
        enough = len(self.settled) + requests
        await until(lambda: len(self.settled) >= enough)

    async def request(self, *, pictures: int = 2) -> None:
        number = next(self._numbers)
        gateway, request_id = next(self._gateways), f"req_{number}"
        try:
            reservation = await gateway.admission.admit(
                self._principal, request_id=request_id, pictures=pictures, lease_seconds=LEASE_SECONDS
            )
        except RateLimited as refusal:
            self.refusals += 1
            await asyncio.sleep(min(0.02, refusal.retry_after_seconds or 0))
            return
        assert isinstance(reservation, Reservation)
        if number % GIVEN_BACK_ONE_IN == 0:
            await gateway.admission.give_back(reservation)
            return
        answered = pictures - number % 2  # of some lists, a picture cannot be used
        event = make_event(
            request_id,
            key_id=self._principal.key_id,
            pictures=answered,
            admitted_at=reservation.admitted_at,
        )
        await gateway.meter.settle(event, reservation, ANSWER)
        self.settled[request_id] = answered

    def most_pictures(self) -> float:
        """That the tier allows for as long as the traffic has lasted."""
        tier = self._principal.tier
        return tier.burst + tier.rate_limit_per_minute / 60 * (time.monotonic() - self._began_at)


class Book:
    """A ledger in a dictionary: event id to its pictures, and the stream entry that it was first seen in."""

    def __init__(self, connection: RedisConnection) -> None:
        self.pictures: dict[str, int] = {}
        self.duplicates = 0
        self._stream_ids: dict[str, tuple[int, str]] = {}
        self._key_ids: dict[str, str] = {}
        self._months: dict[str, Month] = {}
        self._stream = RedisUsageStream(connection, consumer="book", claim_idle_seconds=0)

    async def read(self) -> bool:
        """What is in the stream now; whether there was anything."""
        handled = []
        for entry in (await self._stream.read()).entries:
            event, place = entry.event, (entry.partition, entry.entry_id)
            first = self._stream_ids.setdefault(event.request_id, place)
            self.pictures[event.request_id] = event.pictures
            self._key_ids[event.request_id], self._months[event.request_id] = event.key_id, event.month
            self.duplicates += first != place
            handled.append(Handled(entry, "new" if first == place else "duplicate"))
        result = await self._stream.acknowledge(handled)
        assert not result.unanswered
        return bool(handled)

    async def read_all(self) -> None:
        """For when the traffic has ended."""
        while await self.read():
            pass

    def prime(self, client: redis.Redis) -> None:
        """Fill partitions without an epoch, as the real priming does from the real ledger."""
        for partition in range(keyspace.PARTITIONS):
            if client.exists(keyspace.epoch(partition)):
                continue
            for request_id, pictures in self.pictures.items():
                key_id = self._key_ids[request_id]
                if keyspace.partition_of(key_id) == partition:
                    month = keyspace.used_field(self._months[request_id])
                    client.hincrby(keyspace.account(key_id), month, pictures)
            client.set(keyspace.epoch(partition), f"epoch-{time.monotonic_ns()}")


def pictures_charged(client: redis.Redis, key_id: str, month: Month) -> int:
    """Of the month's count, without what requests that are under way, or were abandoned, have reserved."""
    account: Any = client.hgetall(keyspace.account(key_id))
    reserved = sum(int(value.split()[2]) for name, value in account.items() if name.startswith(b"lease:"))
    return int(account.get(keyspace.used_field(month).encode(), 0)) - reserved
