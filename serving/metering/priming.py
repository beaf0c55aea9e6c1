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
from collections.abc import Collection

from serving.adapters.redis.counters import CountingLock, RedisCounters
from serving.adapters.redis.keyspace import PARTITIONS, partition_of
from serving.metering.drift import DriftFinder
from serving.metering.recount import LOOK_PAUSE_SECONDS, LOOKS, Recount, Sleep, apply

logger = logging.getLogger(__name__)


class Priming:
    """Each method raises AccountsUnavailable, and BackendUnavailable for the ledger."""

    def __init__(
        self,
        counters: RedisCounters,
        drifts: DriftFinder,
        recount: Recount,
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._counters = counters
        self._drifts = drifts
        self._recount = recount
        self._sleep = sleep

    async def unprimed(self) -> list[int]:
        looks = await asyncio.gather(*map(self._counters.look, range(PARTITIONS)))
        return [partition for partition, look in enumerate(looks) if look.epoch is None]

    async def prime(self) -> None:
        """Return once every partition has an epoch, whoever made it. Costs one look where all have one."""
        while unprimed := await self.unprimed():
            key_ids = await self._drifts.all_keys(await self._drifts.months())
            await asyncio.gather(
                *(
                    self._prime(partition, [each for each in key_ids if partition_of(each) == partition])
                    for partition in unprimed
                )
            )

    async def _prime(self, partition: int, key_ids: Collection[str]) -> None:
        async with self._recount.lock(partition) as lock:
            if (await self._counters.look(partition)).epoch is not None:
                return
            if await self._fill(lock, partition, key_ids) and await lock.prime():
                logger.info("partition %d was primed: %d keys", partition, len(key_ids))

    async def _fill(self, lock: CountingLock, partition: int, key_ids: Collection[str]) -> bool:
        """False where it was flushed in the midst of it."""
        months = await self._drifts.months()
        for _ in range(LOOKS):
            sight = await self._drifts.look(key_ids, months)
            if all(drift.is_exact and drift.low == 0 for drift in sight.drifts.values()):
                break
            if not await apply(lock, sight, partition):
                return False
            if not all(drift.is_exact for drift in sight.drifts.values()):
                await self._sleep(LOOK_PAUSE_SECONDS)
        return True
