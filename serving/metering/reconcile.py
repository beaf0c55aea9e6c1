"""Whether stream, ledger and quota counters tell the same story, in one line; and the counters put right.

events of the ledger    = hourly roll-ups = daily roll-ups
count of a key's month  = ledger + stream + leases, for this month and the last; see drift.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from serving.adapters.journal_count import JournalCount
from serving.adapters.redis.counters import KeyMonth
from serving.adapters.redis.stream import Backlog
from serving.adapters.sql.ledger import LedgerCounts
from serving.metering.drift import Drift
from serving.metering.priming import Priming
from serving.metering.recount import Recount

REPAIRS = 3
NAMED_DRIFTS = 3

CountJournals = Callable[[], JournalCount]
"""Of this host. May block."""


class Counted(Protocol):
    async def counts(self) -> LedgerCounts:
        """Raises BackendUnavailable."""


class Queued(Protocol):
    async def backlog(self) -> Backlog:
        """Raises AccountsUnavailable."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, after what was repaired.

    drifts: of the counts that are off. later: entries that only a newer version can read, and bill; one of
    the backlog's each, as `poison` is not. journals: of this host; what waits there was not handed over to
    Redis, and no other number has it yet. unprimed: partitions of a Redis that is new, or was flushed, and
    not filled from the ledger since. repaired: counts that were set right.
    """

    keys: int
    counts: LedgerCounts
    drifts: Mapping[KeyMonth, Drift]
    backlog: Backlog
    later: int
    journals: JournalCount
    unprimed: int
    repaired: int

    @property
    def sums_agree(self) -> bool:
        return self.counts.events == self.counts.hourly == self.counts.daily

    @property
    def agrees(self) -> bool:
        """An answer that nobody can read is one that nobody is billed for."""
        unread = self.later or self.backlog.poison or self.journals.damaged
        return self.sums_agree and not self.drifts and not unread

    def line(self) -> str:
        verdict = "They agree" if self.agrees else "They do not agree"
        return f"{verdict}: {'; '.join((*self._differences(), *self._facts()))}."

    def _differences(self) -> Iterator[str]:
        if not self.sums_agree:
            sums = (self.counts.events, self.counts.hourly, self.counts.daily)
            events, hourly, daily = (f"{each.requests} events, {each.pictures} pictures" for each in sums)
            different = "" if len({events, hourly, daily}) > 1 else ", but not the same sums"
            yield f"the ledger has {events}, by the hour {hourly}, by the day {daily}{different}"
        for (key_id, month), drift in islice(sorted(self.drifts.items()), NAMED_DRIFTS):
            yield f"{key_id} counts {drift.count} in {month}, and should {drift.count - drift.certain}"
        if len(self.drifts) > NAMED_DRIFTS:
            yield f"so are {len(self.drifts) - NAMED_DRIFTS} more counts off"
        if self.backlog.poison:
            yield f"{self.backlog.poison} entries that cannot be read were set aside"
        if self.later:
            yield f"{self.later} entries can be read by a newer version only"
        if self.journals.damaged:
            yield f"{self.journals.damaged} journals of this machine are damaged"

    def _facts(self) -> Iterator[str]:
        yield f"{self.counts.events.requests} events, {self.backlog.entries} on their way, {self.keys} keys"
        if self.repaired:
            yield f"{self.repaired} counts were repaired"
        if self.journals.waiting:
            yield f"{self.journals.waiting} events wait in this machine's journals"
        if self.unprimed:
            yield f"{self.unprimed} partitions of Redis are not filled from the ledger yet"


class Reconciliation:
    """Raises AccountsUnavailable and BackendUnavailable."""

    def __init__(
        self, ledger: Counted, stream: Queued, recount: Recount, *, count_journals: CountJournals
    ) -> None:
        self._ledger = ledger
        self._stream = stream
        self._recount = recount
        self._priming = Priming(recount)
        self._count_journals = count_journals

    async def run(self, *, repair: bool = False) -> Report:
        """What is to be repaired is compared again afterwards: the report is of what is there now."""
        if repair:
            await self._priming.prime()
        report = await self._compare()
        for _ in range(REPAIRS if repair else 0):
            if not report.drifts:
                break
            repaired = await self._recount.correct({key_id for key_id, _ in report.drifts})
            report = replace(await self._compare(), repaired=report.repaired + repaired)
        return report

    async def _compare(self) -> Report:
        months = await self._recount.counters.months()
        key_ids = await self._recount.drifts.all_keys(months)
        sight = await self._recount.differences(key_ids)
        return Report(
            keys=len(key_ids),
            counts=await self._ledger.counts(),
            drifts=sight.drifts,
            backlog=await self._stream.backlog(),
            later=sight.later,
            journals=await asyncio.to_thread(self._count_journals),
            unprimed=len(await self._priming.unprimed()),
            repaired=0,
        )
