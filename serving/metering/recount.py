"""Sets counts from the ledger, by what they are off: requests may go on meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.counters import CountingLock, KeyMonth, RedisCounters
from serving.adapters.redis.keyspace import partition_of
from serving.errors import BackendUnavailable
from serving.metering.drift import DriftFinder, Sight, Totals

logger = logging.getLogger(__name__)

LOOKS = 5
LOOK_PAUSE_SECONDS = 0.1
LOCK_TRIES = 400
LOCK_PAUSE_SECONDS = 0.1
CORRECTIONS_AT_ONCE = 1000

Sleep = Callable[[float], Awaitable[None]]


class Recount:
    """Each method raises AccountsUnavailable, and BackendUnavailable for the ledger."""

    def __init__(self, drifts: DriftFinder, *, looks: int = LOOKS, sleep: Sleep = asyncio.sleep) -> None:
        """looks: how often a drift has to be seen until it is believed."""
        self.drifts = drifts
        self.counters = drifts.counters
        self.looks = looks
        self.sleep = sleep

    async def differences(self, key_ids: Collection[str]) -> Sight:
        """The drifts that were still there when they were looked at again and again."""
        months = await self.counters.months()
        sight = first = await self.drifts.look(key_ids, months)
        for _ in range(self.looks - 1):
            earlier = {of: drift for of, drift in sight.drifts.items() if drift.is_in_doubt}
            if not earlier:
                break
            await self.sleep(LOOK_PAUSE_SECONDS)
            sight = (await self.drifts.look({key_id for key_id, _ in earlier}, months)).narrowed(earlier)
        certain = {of: drift for of, drift in sight.drifts.items() if drift.certain}
        return Sight(certain, sight.epochs, first.later)

    async def correct(self, key_ids: Collection[str]) -> int:
        """How many counts were off, and were set right."""
        async with AsyncExitStack() as held:
            # In one order, so that no two processes wait for each other.
            partitions = sorted(set(map(partition_of, key_ids)))
            locks = {each: await held.enter_async_context(self._lock(each)) for each in partitions}
            sight = await self.differences(key_ids)
            for (key_id, month), drift in sight.drifts.items():
                logger.warning("%s, %s: the count %d is off by %d", key_id, month, drift.count, drift.certain)
            for partition, lock in locks.items():
                if not await apply(lock, sight, partition):
                    logger.info("partition %d was flushed while its keys were counted", partition)
        return len(sight.drifts)

    @asynccontextmanager
    async def _lock(self, partition: int) -> AsyncIterator[CountingLock]:
        """Waits for whoever else counts: who has it, and nobody else, may correct what it has looked at."""
        for _ in range(LOCK_TRIES):
            async with self.counters.lock(partition) as lock:
                if lock is not None:
                    yield lock
                    return
            await self.sleep(LOCK_PAUSE_SECONDS)
        raise BackendUnavailable("Another process has been counting for long.")


def recount(connection: RedisConnection, ledger: Totals) -> Recount:
    """With all that it takes."""
    return Recount(DriftFinder(RedisCounters(connection), ledger))


async def apply(lock: CountingLock, sight: Sight, partition: int) -> bool:
    """Take out of the counts what they are certainly off. False where Redis was flushed since it was seen."""
    off = (
        (of, drift)
        for of, drift in sight.drifts.items()
        if drift.certain and partition_of(of[0]) == partition
    )
    while piece := dict(islice(off, CORRECTIONS_AT_ONCE)):
        by: Mapping[KeyMonth, int] = {of: -drift.certain for of, drift in piece.items()}
        if not await lock.correct(by, seen_epoch=sight.epochs.get(partition)):
            return False
    return True
