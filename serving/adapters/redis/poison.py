"""Entries that no consumer could read, kept in side streams: looked at again, perhaps by a newer version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.counters import ENTRIES
from serving.adapters.redis.entries import RawEntry, decoded
from serving.adapters.redis.keyspace import PARTITIONS
from serving.adapters.redis.scripts import Script

ENTRIES_AT_ONCE = 200
NAMED_REASONS = 10

REPLAY = Script.load("replay")


@dataclass(slots=True)
class Replayed:
    """moved: entries that are in the usage stream again, of `key_ids`. left: those that still are poison.

    reasons: why, for the first few, with where they lie.
    """

    moved: int = 0
    left: int = 0
    key_ids: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)


class RedisPoison:
    """Each method raises AccountsUnavailable."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def replay(self) -> Replayed:
        """Move what can be read by now back into the usage stream. Several may, and any may be killed."""
        result = Replayed()
        for partition in range(PARTITIONS):
            async for chunk in self._entries(partition):
                await self._replay(partition, chunk, result)
        return result

    async def _replay(self, partition: int, chunk: Sequence[RawEntry], result: Replayed) -> None:
        ids: list[Argument] = []
        for entry_id, pairs in chunk:
            try:
                entry = decoded(partition, (entry_id, pairs[2:]))
            except ValueError as exc:
                result.left += 1
                if len(result.reasons) < NAMED_REASONS:
                    where = f"{keyspace.poison_stream(partition)} {entry_id.decode()}"
                    result.reasons.append(f"{where}: {exc}")
                continue
            ids.append(entry_id)
            result.key_ids.add(entry.event.key_id)
        if ids:
            keys = [keyspace.poison_stream(partition), keyspace.usage_stream(partition)]
            result.moved += await self._connection.run(REPLAY, keys, ids)

    async def _entries(self, partition: int) -> AsyncIterator[Sequence[RawEntry]]:
        """In chunks: what lies there may have gathered for long."""
        after = "0-0"
        while True:
            args: list[Argument] = [after, "+", ENTRIES_AT_ONCE]
            chunk: Sequence[RawEntry] = await self._connection.run(
                ENTRIES, [keyspace.poison_stream(partition)], args
            )
            if not chunk:
                return
            yield chunk
            after = chunk[-1][0].decode()
