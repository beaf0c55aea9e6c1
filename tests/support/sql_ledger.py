"""What tests of the ledger say again and again."""

from __future__ import annotations

from collections.abc import Sequence

from serving.adapters.sql.ledger import LedgerCounts, LedgerEntry, SqlLedger, Sums
from serving.domain.usage import UsageEvent


def entry(event: UsageEvent, stream_entry: str = "1-0") -> LedgerEntry:
    return LedgerEntry(event, stream_entry)


def sums_of(events: Sequence[UsageEvent]) -> Sums:
    return Sums(
        requests=len(events),
        pictures=sum(event.pictures for event in events),
        pixels=sum(event.pixels for event in events),
        received_bytes=sum(event.received_bytes for event in events),
        inference_microseconds=sum(event.inference_microseconds for event in events),
    )


async def assert_holds(ledger: SqlLedger, events: Sequence[UsageEvent]) -> None:
    """These and no others, in each of its tables."""
    sums = sums_of(events)
    assert await ledger.counts() == LedgerCounts(sums, sums, sums)
