"""One look at all of Redis: every partition, and the gateways that share it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.scripts import CLOCK, Script

StreamId = tuple[int, int]
"""Of an entry, milliseconds and a number within them: a later entry's is greater."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """How one partition was.

    epoch: None where its counters were not taken from the ledger, so it cannot be used. server: of the run of
    the server that answered. consumed_below: every entry with a lesser id was acknowledged by the ledger, or
    was lost with an epoch or a server.
    """

    partition: int
    epoch: str | None
    server: str
    consumed_below: StreamId
    now_microseconds: int


def stream_id(text: str | bytes) -> StreamId:
    milliseconds, _, number = (text if isinstance(text, str) else text.decode()).partition("-")
    return int(milliseconds), int(number)


class PulseTaker:
    def __init__(self, connection: RedisConnection, *, clock: str = CLOCK, replicas: int = 0) -> None:
        """replicas: that have to be there as well, for a partition to be well."""
        self._connection = connection
        self._script = Script.load("pulse", clock=clock)
        self._replicas = replicas

    async def take(self) -> list[Pulse]:
        """Of each partition. Raises AccountsUnavailable where one takes no writes, or does not answer."""
        return await asyncio.gather(*map(self._take, range(keyspace.PARTITIONS)))

    async def _take(self, partition: int) -> Pulse:
        keys = (keyspace.epoch(partition), keyspace.usage_stream(partition))
        reply = await self._connection.run(self._script, keys, replicas=self._replicas)
        now, epoch, server, entry, is_waiting = reply
        milliseconds, number = stream_id(entry)
        return Pulse(
            partition,
            epoch=epoch.decode() or None,
            server=server.decode(),
            consumed_below=(milliseconds, number if is_waiting else number + 1),
            now_microseconds=int(now),
        )
