"""By how much the counts of the month are off what ledger, stream and leases say, while all of them move.

One entry of the stream is one charge, and so is one lease, so that for each key and month

    count = ledger + entries that the ledger has not recorded + leases + drift

where an entry whose event the ledger has by another entry counts as well: its charge was not given back yet.
Redis is read as of one moment, but the ledger goes on. So it is read before and after: what it gained in
between may be in the rest of the sum or not, and the drift lies between two bounds, which meet where it
gained nothing. Only in a backlog of more entries than fit into one look may a duplicate that is given back
meanwhile blur the bounds; hence nothing is believed that was seen once.

Entries of a later form stand for charges too, but nobody here can say of which key: in their partition no
count is known to be too high.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from serving.adapters.redis.counters import KeyMonth, Look, RedisCounters
from serving.adapters.redis.entries import RawEntry, StreamEntry, decoded
from serving.adapters.redis.keyspace import partition_of
from serving.adapters.redis.pulse import stream_id
from serving.adapters.usage_codec import LaterForm
from serving.domain.month import Month

KEYS_IN_A_LOOK = 1000


class Totals(Protocol):
    """Of the ledger. Each method raises BackendUnavailable."""

    async def month_totals(self, month: Month) -> Mapping[str, int]:
        """Pictures, by key."""

    async def entry_ids(self, event_ids: Iterable[str]) -> Mapping[str, str]:
        """By which entry of the stream each event was recorded, of those that were."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Of one key in one month, in pictures.

    on_the_way: in the stream. low, high: by how much the count is too high; negative where it is too low.
    """

    count: int
    ledger: int
    on_the_way: int
    leased: int
    low: int
    high: int

    @property
    def certain(self) -> int:
        """How far off it is at the least; 0 where it may agree."""
        return self.low if self.low > 0 else min(self.high, 0)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    @property
    def is_in_doubt(self) -> bool:
        return not (self.low == self.high == 0)

    def narrowed(self, earlier: Drift) -> Drift:
        """By what an earlier look said of it. Where the two exclude each other, only this one counts."""
        low, high = max(self.low, earlier.low), min(self.high, earlier.high)
        return self if low > high else replace(self, low=low, high=high)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look found.

    epochs: of the partitions that were looked at. later: entries of a later form in their streams.
    """

    drifts: Mapping[KeyMonth, Drift]
    epochs: Mapping[int, str | None]
    later: int = 0

    def narrowed(self, earlier: Mapping[KeyMonth, Drift]) -> Sight:
        """To what was in doubt before, as far as it still may be."""
        both = {of: self.drifts[of].narrowed(before) for of, before in earlier.items()}
        return replace(self, drifts=both)


@dataclass(slots=True)
class OnTheWay:
    """pictures: of entries that stand for a charge which the ledger's total has not. later: of entries."""

    pictures: dict[KeyMonth, int] = field(default_factory=lambda: defaultdict(int))
    later: int = 0


class DriftFinder:
    def __init__(self, counters: RedisCounters, ledger: Totals) -> None:
        self.counters = counters
        self._ledger = ledger

    async def all_keys(self, months: Iterable[Month]) -> set[str]:
        """That have a count, or should."""
        billed = [key_id for month in months for key_id in await self._ledger.month_totals(month)]
        return (await self.counters.key_ids()).union(billed)

    async def look(self, key_ids: Collection[str], months: Sequence[Month]) -> Sight:
        """Raises AccountsUnavailable and BackendUnavailable."""
        before = await self._totals(months)
        epochs: dict[int, str | None] = {}
        later: dict[int, int] = {}
        seen: list[tuple[Look, OnTheWay]] = []
        for partition, some in _by_partition(key_ids):
            look = await self.counters.look(partition, some)
            epochs[partition] = look.epoch
            on_the_way = await self._on_the_way(partition, look)
            later[partition] = on_the_way.later
            seen.append((look, on_the_way))
        after = await self._totals(months)
        drifts = {
            (key_id, month): _drift(look, on_the_way, (key_id, month), before, after)
            for look, on_the_way in seen
            for key_id in look.accounts
            for month in months
        }
        return Sight(drifts, epochs, sum(later.values()))

    async def _totals(self, months: Iterable[Month]) -> Mapping[Month, Mapping[str, int]]:
        return {month: await self._ledger.month_totals(month) for month in months}

    async def _on_the_way(self, partition: int, look: Look) -> OnTheWay:
        found = OnTheWay()
        async for chunk in self._entries(partition, look):
            readable, later = _readable(partition, chunk)
            found.later += later
            entries = [entry for entry in readable if entry.event.key_id in look.accounts]
            recorded = await self._ledger.entry_ids([entry.event.request_id for entry in entries])
            for entry in entries:
                if recorded.get(entry.event.request_id) != entry.entry_id:
                    found.pictures[entry.event.key_id, entry.event.month] += entry.event.pictures
        return found

    async def _entries(self, partition: int, look: Look) -> AsyncIterator[Sequence[RawEntry]]:
        """Those of the look, then in chunks those that were there too: memory does not grow with them."""
        chunk = look.first_entries
        while chunk:
            yield chunk
            last = stream_id(chunk[-1][0])
            if last >= look.last_id:
                return
            chunk = await self.counters.entries(partition, after=last, until=look.last_id)


def _drift(
    look: Look,
    on_the_way: OnTheWay,
    of: KeyMonth,
    before: Mapping[Month, Mapping[str, int]],
    after: Mapping[Month, Mapping[str, int]],
) -> Drift:
    key_id, month = of
    account = look.accounts[key_id]
    ledger = after[month].get(key_id, 0)
    gained = ledger - before[month].get(key_id, 0)
    count, leased, waiting = account.used[month], account.leased[month], on_the_way.pictures.get(of, 0)
    low = count - leased - waiting - ledger
    at_least = min(low, 0) if on_the_way.later else low
    return Drift(count, ledger, waiting, leased, at_least, low + gained)


def _readable(partition: int, chunk: Iterable[RawEntry]) -> tuple[Sequence[StreamEntry], int]:
    """And how many are of a later form."""
    entries, later = [], 0
    for raw in chunk:
        try:
            entries.append(decoded(partition, raw))
        except LaterForm:
            later += 1
        except ValueError:
            continue  # the consumer sets it aside, and says so
    return entries, later


def _by_partition(key_ids: Collection[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """In pieces that Redis reads in a moment."""
    partitions: dict[int, list[str]] = defaultdict(list)
    for key_id in key_ids:
        partitions[partition_of(key_id)].append(key_id)
    for partition, some in partitions.items():
        rest = iter(some)
        while piece := list(islice(rest, KEYS_IN_A_LOOK)):
            yield partition, piece
