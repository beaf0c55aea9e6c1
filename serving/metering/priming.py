"""Fills a Redis that is new, or was flushed, from the ledger, before the first request is admitted by it.

What may happen at the same time, and why the counts are right all the same:

    other gateways  A partition has a lock, and its epoch comes last: no script admits or settles before.
    the consumer    It may commit what it had read before the flush. The ledger is looked at again until it
                    has stood still; and what is committed later still finds its entry gone when it is
                    acknowledged, and has its key counted again.
    another flush   It takes the lock with it, and so the right to open the partition: all starts again.
    a death         The lock lapses. Counts are moved by what they are off, so the next one sets what is left.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.counters import CountingLock
from serving.adapters.redis.keyspace import PARTITIONS, partition_of
from serving.metering.drift import Totals
from serving.metering.recount import LOCK_PAUSE_SECONDS, LOOK_PAUSE_SECONDS, Recount, apply, recount

logger = logging.getLogger(__name__)


class Priming:
    """Each method raises AccountsUnavailable, and BackendUnavailable for the ledger."""

    def __init__(self, recount: Recount) -> None:
        self._recount = recount
        self._drifts = recount.drifts
        self._counters = recount.counters

    async def unprimed(self) -> list[int]:
        epochs = await asyncio.gather(*map(self._counters.epoch, range(PARTITIONS)))
        return [partition for partition, epoch in enumerate(epochs) if epoch is None]

    async def prime(self) -> None:
        """Return once every partition has an epoch, whoever made it. Costs one look where all have one."""
        while unprimed := await self.unprimed():
            async with AsyncExitStack() as held:
                locks = {}
                for partition in unprimed:
                    if lock := await held.enter_async_context(self._counters.lock(partition)):
                        locks[partition] = lock
                if locks:
                    await self._fill(locks)
                else:
                    await self._recount.sleep(LOCK_PAUSE_SECONDS)

    async def _fill(self, locks: dict[int, CountingLock]) -> None:
        months = await self._counters.months()
        key_ids = {each for each in await self._drifts.all_keys(months) if partition_of(each) in locks}
        for _ in range(self._recount.looks):
            sight = await self._drifts.look(key_ids, months)
            if not any(drift.is_in_doubt for drift in sight.drifts.values()):
                break
            lost = [partition for partition, lock in locks.items() if not await apply(lock, sight, partition)]
            for partition in lost:
                del locks[partition]
            if not all(drift.is_exact for drift in sight.drifts.values()):
                await self._recount.sleep(LOOK_PAUSE_SECONDS)
        for partition, lock in locks.items():
            if await lock.prime():
                logger.info("partition %d is filled from the ledger", partition)


def priming(connection: RedisConnection, ledger: Totals) -> Priming:
    """With all that it takes."""
    return Priming(recount(connection, ledger))
