"""What a key has used this month by the ledger: for whom Redis has told nothing of the key, and is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.domain.month import Month
from serving.errors import BackendUnavailable
from serving.ports import Clock

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.5
PAUSE_SECONDS = 5.0
"""Nobody asks for so long after a question was not answered: requests must not wait for it one by one."""
MOST_AT_A_TIME = 8

Read = Callable[[str, Month], Awaitable[int]]
"""Pictures of a key id in a month. Raises BackendUnavailable."""


class LedgerUsage:
    """Belongs to one event loop. Requests of one key ask once together."""

    def __init__(self, read: Read, *, month: Callable[[], Month], clock: Clock) -> None:
        """month: that is now, on Redis' clock."""
        self._read = read
        self._month = month
        self._clock = clock
        self._places = asyncio.Semaphore(MOST_AT_A_TIME)
        self._asking: dict[str, asyncio.Task[int | None]] = {}
        self._asks_again_at = 0.0

    async def used_this_month(self, key_id: str) -> int | None:
        """Pictures; None where the ledger does not say within the timeout, or did not a moment ago."""
        if self._clock.monotonic() < self._asks_again_at:
            return None
        asking = self._asking.get(key_id)
        if asking is None:
            asking = self._asking[key_id] = asyncio.create_task(self._ask(key_id))
            asking.add_done_callback(lambda _: self._asking.pop(key_id))
        return await asyncio.shield(asking)  # whoever leaves does not take the answer from the others

    async def _ask(self, key_id: str) -> int | None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._places:
                return await self._read(key_id, self._month())
        except (TimeoutError, BackendUnavailable) as error:
            logger.warning("what keys have used is not known, for the ledger does not say: %s", error)
        except Exception:
            logger.exception("what keys have used is not known, for the ledger cannot be asked")
        self._asks_again_at = self._clock.monotonic() + PAUSE_SECONDS
        return None
