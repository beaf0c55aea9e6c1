"""Whether stream, ledger and quota counters tell the same story, in one line; and the counters put right.

    events of the ledger    = hourly roll-ups = daily roll-ups
    count of a key's month  = ledger + stream + leases, for this month and the last; see drift.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from serving.adapters.redis.counters import KeyMonth
from serving.adapters.redis.stream import Backlog
from serving.adapters.sql.ledger import LedgerCounts
from serving.metering.drift import Drift, DriftFinder
from serving.metering.priming import Priming
from serving.metering.recount import Recount

REPAIRS = 3
NAMED_DRIFTS = 3

CountJournals = Callable[[], int]
"""How many events wait in this host's journals. May block."""


class Counted(Protocol):
    async def counts(self) -> LedgerCounts:
        """Raises BackendUnavailable."""


class Queued(Protocol):
    async def backlog(self) -> Backlog:
        """Raises AccountsUnavailable."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, after what was repaired.

    drifts: of the counts that are off. in_journals: events that this host's gateways have not handed over to
    Redis; no other number has them yet. unprimed: partitions of a Redis that is new, or was flushed, and not
    filled from the ledger since. repaired: counts that were set right.
    """

    keys: int
    counts: LedgerCounts
    drifts: Mapping[KeyMonth, Drift]
    backlog: Backlog
    in_journals: int
    unprimed: int
    repaired: int

    @property
    def agrees(self) -> bool:
        return not self.drifts and self.counts.agree

    def line(self) -> str:
        verdict = "They agree" if self.agrees else "They do not agree"
        return f"{verdict}: {'; '.join((*self._differences(), *self._facts()))}."

    def _differences(self) -> Iterator[str]:
        counts = self.counts
        if not counts.agree:
            yield (
                f"{counts.events.requests} events with {counts.events.pictures} pictures, by the hour "
                f"{counts.hourly.requests} with {counts.hourly.pictures}, by the day "
                f"{counts.daily.requests} with {counts.daily.pictures}"
            )
        if self.drifts:
            named = [
                f"{key_id} {month} is {drift.count}, not {drift.count - drift.certain}"
                for (key_id, month), drift in islice(sorted(self.drifts.items()), NAMED_DRIFTS)
            ]
            more = len(self.drifts) - len(named)
            yield f"{', '.join(named)}{f' and {more} more' if more else ''}"

    def _facts(self) -> Iterator[str]:
        yield f"{self.counts.events.requests} events in the ledger, {self.backlog.entries} in the stream, "
    ...
