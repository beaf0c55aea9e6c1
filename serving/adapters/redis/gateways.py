"""How many gateways share each key's limits: what one of them may admit alone is one share."""

from __future__ import annotations

import contextlib
import secrets
from collections import deque

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.scripts import CLOCK, Script
from serving.adapters.redis.trouble import translated
from serving.errors import AccountsUnavailable
from serving.ports import Clock

ALIVE_SECONDS = 5.0
"""A gateway that was not heard of for so long is gone. On Redis' clock."""


class LiveGateways:
    """This process' heartbeat, and the count of all that have one."""

    def __init__(
        self,
        connection: RedisConnection,
        clock: Clock,
        *,
        expected: int,
        replicas: int = 0,
        redis_clock: str = CLOCK,
    ) -> None:
        """expected: how many there are, until Redis has said so. replicas: that have to take each beat."""
        self._connection = connection
        self._clock = clock
        self._replicas = replicas
        self._id = secrets.token_hex(8)
        self._script = Script.load("gateways", clock=redis_clock)
        self._heard: deque[tuple[float, int]] = deque()
        self._count = expected

    @property
    def count(self) -> int:
        """At least 1. While Redis is gone, what was last heard."""
        return self._count

    async def beat(self) -> None:
        """Raises AccountsUnavailable."""
        count = await self._connection.run(
            self._script,
            (keyspace.GATEWAYS,),
            (self._id, round(ALIVE_SECONDS * 1_000_000)),
            replicas=self._replicas,
        )
        now = self._clock.monotonic()
        while self._heard and self._heard[0][0] < now - ALIVE_SECONDS:
            self._heard.popleft()
        if not self._heard:  # at the start, or after an outage: what was known holds until all had their turn
            self._heard.append((now, self._count))
        self._heard.append((now, int(count)))
        # The most of late: a Redis that was gone hears of them one by one, and none may take all.
        self._count = max(count for _, count in self._heard)

    async def leave(self) -> None:
        """Not to be counted any longer. Never raises: without it, the others notice in `ALIVE_SECONDS`."""
        with contextlib.suppress(AccountsUnavailable), translated(self._connection.metrics):
            await self._connection.redis.zrem(keyspace.GATEWAYS, self._id)
