"""Moves usage events from the stream to the ledger.

Each batch is read, recorded, acknowledged, in this order, and each step again until it works. So whatever
dies when, an event is in the ledger once: what is not acknowledged is handed out again, and the ledger knows
it by its id.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.adapters.redis.entries import StreamEntry
from serving.adapters.redis.stream import Acknowledgement, Backlog, Handled, Reading
from serving.adapters.sql.ledger import LedgerEntry
from serving.domain.usage import Verdict
from serving.errors import AccountsUnavailable, BackendUnavailable
from serving.metering.metrics import MeterMetrics
from serving.metering.suspects import Recount, Suspects
from serving.ports import Clock

logger = logging.getLogger(__name__)

MAX_UNACKNOWLEDGED = 4096
CLAIM_SECONDS = 1.0
OBSERVE_SECONDS = 1.0
TIDY_SECONDS = 60.0
DRAIN_SECONDS = 5.0

Wait = Callable[[asyncio.Event, float], Awaitable[None]]
"""Wait for the event, at most so many seconds."""


class UsageStream(Protocol):
    """What a consumer needs of `RedisUsageStream`."""

    async def read(self) -> Reading: ...
    async def claim(self) -> Reading: ...
    async def acknowledge(self, handled: Sequence[Handled]) -> Acknowledgement: ...
    async def backlog(self) -> Backlog: ...
    async def forget_dead_consumers(self) -> None: ...


class Recorder(Protocol):
    async def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Verdict]:
        """What each was to the ledger, which has them all. Raises BackendUnavailable, and then has none."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """Double from the first to the longest, and begin again with the first success. In seconds."""

    first: float
    longest: float

    def after(self, times_in_a_row: int) -> float:
        return min(self.longest, self.first * 2.0 ** min(times_in_a_row - 1, 32))


IDLE = Pauses(0.005, 0.1)
FAILING = Pauses(0.1, 2.0)


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


class Consumer:
    """One of those that share the group: several may run, and any may be killed."""

    def __init__(
        self,
        stream: UsageStream,
        ledger: Recorder,
        recount: Recount,
        metrics: MeterMetrics,
        clock: Clock,
        *,
        wait: Wait = wait_for,
    ) -> None:
        self._stream = stream
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._wait = wait
        self._stopping = asyncio.Event()
        self._read: Sequence[StreamEntry] = ()
        self._recorded: list[Handled] = []
        self._suspects = Suspects(
            recount, has_counted=metrics.recounted.inc, has_failed=self._recount_has_failed
        )
        self._later = 0
        self._claim_at = self._observe_at = self._tidy_at = clock.monotonic()
        self._drained_by = math.inf

    async def run(self) -> None:
        """Until it is cancelled, at any point and without loss, or told to `stop`."""
        try:
            await self._move()
            await self._suspects.finish(within_seconds=self._drained_by - self._clock.monotonic())
        finally:
            await self._suspects.abandon()

    async def _move(self) -> None:
        idle_in_a_row = failures_in_a_row = 0
        while self._clock.monotonic() < self._drained_by:
            try:
                has_moved = await self._step()
            except BackendUnavailable as error:
                self._has_failed(error)
                failures_in_a_row += 1
                pause_seconds = FAILING.after(failures_in_a_row)
            else:
                failures_in_a_row = 0
                idle_in_a_row = 0 if has_moved else idle_in_a_row + 1
                if has_moved:
                    continue
                pause_seconds = IDLE.after(idle_in_a_row)
            if self._stopping.is_set():
                return  # drained, or not to be drained: what is left is handed out to the next
            await self._wait(self._stopping, pause_seconds)

    def stop(self) -> None:
        """Move what is in the stream, as far as that takes no longer than `DRAIN_SECONDS`, then end."""
        self._drained_by = self._clock.monotonic() + DRAIN_SECONDS
        self._stopping.set()

    async def _step(self) -> bool:
        """Whether there was anything to move. After a failure it goes on where it was."""
        await self._keep_house()
        await self._acknowledge()
        later_before = self._later
        if not self._read and len(self._recorded) < MAX_UNACKNOWLEDGED:
            self._read = await self._next()
        if not self._read:
            return self._later > later_before  # there may be more behind them
        with self._metrics.batch_seconds.time():
            await self._record()
            await self._acknowledge()
        return True

    async def _next(self) -> Sequence[StreamEntry]:
        now = self._clock.monotonic()
        if now >= self._claim_at:
            if claimed := self._entries_of(await self._stream.claim()):
                return claimed
            self._claim_at = now + CLAIM_SECONDS
        reading = await self._stream.read()
        if reading.later and not self._later:  # once a minute, for there may be many
            logger.warning("entries of a later form wait for a newer version of the meter")
        self._later += reading.later
        self._metrics.later.inc(reading.later)
        return self._entries_of(reading)

    def _entries_of(self, reading: Reading) -> Sequence[StreamEntry]:
        self._metrics.set_aside.inc(reading.set_aside)
        self._metrics.failures.labels("redis").inc(reading.unanswered)
        return reading.entries

    async def _record(self) -> None:
        entries = [LedgerEntry(entry.event, stream_entry=entry.entry_id) for entry in self._read]
        verdicts = await self._ledger.record(entries)
        self._recorded += map(Handled, self._read, verdicts)
        for verdict, count in Counter(verdicts).items():
            self._metrics.moved.labels(verdict).inc(count)
        self._read = ()

    async def _acknowledge(self) -> None:
        if self._recorded:
            outcome = await self._stream.acknowledge(self._recorded)
            self._recorded = outcome.unanswered
            # What was new, and yet not there any more, was flushed, and its charge with it. Whether the
            # counts were taken from the ledger before it came there or after, nobody knows.
            self._suspects.add(each.entry.event.key_id for each in outcome.gone if each.verdict == "new")
            self._metrics.failures.labels("redis").inc(len(outcome.unanswered))

    async def _recount_has_failed(self, error: BackendUnavailable, times_in_a_row: int) -> bool:
        self._has_failed(error)
        await self._wait(self._stopping, FAILING.after(times_in_a_row))
        return not self._stopping.is_set()

    async def _keep_house(self) -> None:
        now = self._clock.monotonic()
        if now >= self._observe_at:
            backlog = await self._stream.backlog()
            self._metrics.backlog.set(backlog.entries)
            self._metrics.lag_seconds.set(backlog.lag_seconds)
            self._metrics.poison.set(backlog.poison)
            self._observe_at = now + OBSERVE_SECONDS
        if now >= self._tidy_at:
            await self._stream.forget_dead_consumers()
            self._later = 0
            self._tidy_at = now + TIDY_SECONDS

    def _has_failed(self, error: BackendUnavailable) -> None:
        part = "redis" if isinstance(error, AccountsUnavailable) else "sql"
        self._metrics.failures.labels(part).inc()
        logger.warning("ledger: %s: %s", part, error)
