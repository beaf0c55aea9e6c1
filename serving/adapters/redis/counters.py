"""The counts of the month's quota, to be compared with the ledger, and set from it."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.entries import RawEntry
from serving.adapters.redis.pulse import StreamId, stream_id
from serving.adapters.redis.scripts import CLOCK, Script
from serving.adapters.redis.trouble import translated
from serving.domain.month import Month

ENTRIES_IN_A_LOOK = 1000
SCANNED_AT_ONCE = 1000
LOCK_SECONDS = 30.0

LOOK = Script.load("look")
CORRECT = Script.load("correct", shared=("account",))
ENTRIES = Script.load("entries")
EPOCH = Script.load("epoch")
PRIME = Script.load("prime")
UNLOCK = Script.load("unlock")

KeyMonth = tuple[str, Month]


@dataclass(slots=True)
class Account:
    """Pictures of one key, by month. leased: those of requests under way, which are counted in `used`."""

    used: dict[Month, int] = field(default_factory=lambda: defaultdict(int))
    leased: dict[Month, int] = field(default_factory=lambda: defaultdict(int))


@dataclass(frozen=True, slots=True)
class Look:
    """Some accounts of a partition, and the stream beside them, as of one moment.

    epoch: None where the partition is not primed. last_id: of the stream's latest entry ever. first_entries:
    of its `ENTRIES_IN_A_LOOK` oldest; the others have to be read one after the other.
    """

    epoch: str | None
    last_id: StreamId
    first_entries: Sequence[RawEntry]
    accounts: Mapping[str, Account]


class RedisCounters:
    """Each method raises AccountsUnavailable."""

    def __init__(self, connection: RedisConnection, *, clock: str = CLOCK) -> None:
        """clock: Lua that defines `now_microseconds()`."""
        self._connection = connection
        self._now = Script.load("now", clock=clock)

    async def months(self) -> tuple[Month, Month]:
        """This one and the last, on the clock that requests are admitted by."""
        microseconds = await self._connection.run(self._now, [keyspace.epoch(0)])
        this = Month.of(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds))
        return this, this.previous

    async def key_ids(self) -> set[str]:
        """Of every account, in all partitions."""
        with translated(self._connection.metrics):
            found = self._connection.redis.scan_iter(match=keyspace.ACCOUNTS, count=SCANNED_AT_ONCE)
            return {keyspace.key_id_of(name.decode()) async for name in found}

    async def epoch(self, partition: int) -> str | None:
        """None where the partition is not primed."""
        epoch: bytes | None = await self._connection.run(EPOCH, [keyspace.epoch(partition)])
        return None if epoch is None else epoch.decode()

    async def look(self, partition: int, key_ids: Sequence[str]) -> Look:
        keys = [keyspace.epoch(partition), keyspace.usage_stream(partition), *map(keyspace.account, key_ids)]
        epoch, last_id, entries, hashes = await self._connection.run(LOOK, keys, [ENTRIES_IN_A_LOOK])
        accounts = {key_id: _account(pairs) for key_id, pairs in zip(key_ids, hashes, strict=True)}
        return Look(epoch and epoch.decode(), stream_id(last_id), entries, accounts)

    async def entries(self, partition: int, *, after: StreamId, until: StreamId) -> Sequence[RawEntry]:
        """The next ones, `ENTRIES_IN_A_LOOK` at most; none where there are no more."""
        args: list[Argument] = [f"{after[0]}-{after[1]}", f"{until[0]}-{until[1]}", ENTRIES_IN_A_LOOK]
        found: Sequence[RawEntry] = await self._connection.run(
            ENTRIES, [keyspace.usage_stream(partition)], args
        )
        return found

    @asynccontextmanager
    async def lock(self, partition: int) -> AsyncIterator[CountingLock | None]:
        """The right to set the partition's counts; None where another process has it."""
        lock = CountingLock(self._connection, partition)
        if not await lock.take():
            yield None
            return
        try:
            yield lock
        finally:
            await lock.give_back()


class CountingLock:
    """Lapses by itself `LOCK_SECONDS` after it was taken, or was last used."""

    def __init__(self, connection: RedisConnection, partition: int) -> None:
        self._connection = connection
        self._token = secrets.token_hex(16)
        self._lock = keyspace.counting_lock(partition)
        self._epoch = keyspace.epoch(partition)

    async def take(self) -> bool:
        with translated(self._connection.metrics):
            taken = await self._connection.redis.set(
                self._lock, self._token, nx=True, px=round(LOCK_SECONDS * 1000)
            )
        return bool(taken)

    async def correct(self, by: Mapping[KeyMonth, int], *, seen_epoch: str | None) -> bool:
        """Add to the counts. False where the lock has lapsed, or the epoch is another: nothing was done."""
        key_ids = sorted({key_id for key_id, _ in by})
        keys = [self._lock, self._epoch, *map(keyspace.account, key_ids)]
        place = {key_id: number for number, key_id in enumerate(key_ids, start=3)}
        args: list[Argument] = [self._token, seen_epoch or "", round(LOCK_SECONDS * 1000)]
        for (key_id, month), pictures in by.items():
            args += (place[key_id], keyspace.used_field(month), pictures)
        return bool(await self._connection.run(CORRECT, keys, args))

    async def prime(self) -> bool:
        """Give the partition an epoch, and so open it. False where the lock has lapsed."""
        keys = [self._lock, self._epoch]
        return bool(await self._connection.run(PRIME, keys, [self._token, secrets.token_hex(16)]))

    async def give_back(self) -> None:
        await self._connection.run(UNLOCK, [self._lock], [self._token])


def _account(pairs: Sequence[bytes]) -> Account:
    account = Account()
    for name, value in zip(map(bytes.decode, pairs[::2]), pairs[1::2], strict=True):
        if name.startswith(keyspace.USED):
            account.used[Month.parse(name.removeprefix(keyspace.USED))] += int(value)
        elif name.startswith(keyspace.LEASE):
            *_, pictures, month = value.decode().split()
            account.leased[Month.parse(month)] += int(pictures)
    return account
