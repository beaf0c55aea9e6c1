"""Sets counts from the ledger, by what they are off: requests may go on meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import islice

from serving.adapters.redis.counters import CountingLock, KeyMonth, RedisCounters
from serving.adapters.redis.keyspace import partition_of
from serving.errors import BackendUnavailable
from serving.metering.drift import DriftFinder, Sight

logger = logging.getLogger(__name__)

LOOKS = 5
LOOK_PAUSE_SECONDS = 0.1
LOCK_TRIES = 400
LOCK_PAUSE_SECONDS = 0.1
CORRECTIONS_AT_ONCE = 1000

Sleep = Callable[[float], Awaitable[None]]


class Recount:
    """Each method raises AccountsUnavailable, and BackendUnavailable for the ledger."""

    def __init__(
        self,
        counters: RedisCounters,
        drifts: DriftFinder,
        *,
        looks: int = LOOKS,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """looks: how often a drift has to be seen until it is believed."""
        self._counters = counters
        self._drifts = drifts
        self._looks = looks
        self._sleep = sleep

    async def differences(self, key_ids: Collection[str]) -> Sight:
        """The drifts that were still there when they were looked at again and again."""
        months = await self._drifts.months()
        sight = await self._drifts.look(key_ids, months)
        for _ in range(self._looks - 1):
            in_doubt = {of[0] for of, drift in sight.drifts.items() if drift.certain or not drift.is_exact}
            if not in_doubt:
                break
            await self._sleep(LOOK_PAUSE_SECONDS)
            sight = await self._drifts.look(in_doubt, months)
        return Sight({of: drift for of, drift in sight.drifts.items() if drift.certain}, sight.epochs)

    async def correct(self, key_ids: Collection[str]) -> int:
        """How many counts were off, and were set right."""
        partitions: dict[int, list[str]] = defaultdict(list)
        for key_id in key_ids:
            partitions[partition_of(key_id)].append(key_id)
        return sum(await asyncio.gather(*map(self._correct, partitions, partitions.values())))

    @asynccontextmanager
    async def lock(self, partition: int) -> AsyncIterator[CountingLock]:
        """Waits for whoever else counts: who has it, and nobody else, may correct what it has looked at."""
        for _ in range(LOCK_TRIES):
            async with self._counters.lock(partition) as lock:
                if lock is not None:
                    yield lock
                    return
            await self._sleep(LOCK_PAUSE_SECONDS)
        raise BackendUnavailable("Another process has been counting for long.")

    async def _correct(self, partition: int, key_ids: Collection[str]) -> int:
        async with self.lock(partition) as lock:
            sight = await self.differences(key_ids)
            if not await apply(lock, sight, partition):
                return 0  # flushed meanwhile: the counts come from the ledger, with the next epoch
        return len(sight.drifts)


async def apply(lock: CountingLock, sight: Sight, partition: int) -> bool:
    """Take out of the counts what they are certainly off. False where Redis was flushed since that was seen."""
    off = ((of, drift) for of, drift in sight.drifts.items() if drift.certain)
    while piece := dict(islice(off, CORRECTIONS_AT_ONCE)):
        for (key_id, month), drift in piece.items():
            logger.warning("count of %s in %s: %d, off by %d", key_id, month, drift.count, drift.certain)
        by: Mapping[KeyMonth, int] = {of: -drift.certain for of, drift in piece.items()}
        if not await lock.correct(by, seen_epoch=sight.epochs.get(partition)):
            return False
    return True
