"""Keys whose counts nobody is sure of, counted again beside the events that move on.

Counting waits for whoever else counts, and for a lock that a dead process has left behind until that lapses:
half a minute in which no event may stand still.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

from serving.errors import BackendUnavailable

logger = logging.getLogger(__name__)

Recount = Callable[[Collection[str]], Awaitable[object]]
"""Count these keys' pictures again. Raises AccountsUnavailable, BackendUnavailable."""

HasFailed = Callable[[BackendUnavailable, int], Awaitable[bool]]
"""Is told how often it failed in a row, and returns when it is time to try again; False for not any more."""


class Suspects:
    """Ends with `abandon`."""

    def __init__(
        self, recount: Recount, *, has_counted: Callable[[int], object], has_failed: HasFailed
    ) -> None:
        """has_counted: is told how many keys."""
        self._recount = recount
        self._has_counted = has_counted
        self._has_failed = has_failed
        self._waiting: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, key_ids: Iterable[str]) -> None:
        """Returns at once."""
        self._waiting.update(key_ids)
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._count())

    async def finish(self, *, within_seconds: float) -> None:
        """Wait until all are counted, as far as that takes no longer."""
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=within_seconds)
            for task in done:
                task.result()

    async def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            logger.warning("%d keys were not counted again: `visiongate usage reconcile`", len(self._waiting))

    async def _count(self) -> None:
        failures_in_a_row = 0
        while self._waiting:
            # What is suspected again while it is counted is counted again afterwards.
            counting, self._waiting = self._waiting, set()
            try:
                await self._recount(counting)
            except BackendUnavailable as error:
                self._waiting |= counting
                failures_in_a_row += 1
                if not await self._has_failed(error, failures_in_a_row):
                    return
            except BaseException:
                self._waiting |= counting
                raise
            else:
                failures_in_a_row = 0
                self._has_counted(len(counting))
