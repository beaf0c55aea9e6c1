"""What has been billed, for good: the ledger in the SQL database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import func, literal, select, union_all
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.sql.database import Database
from serving.adapters.sql.invoicing import read_invoice
from serving.adapters.sql.ledger_tables import DAILY, EVENTS, HOURLY, SUMS
from serving.adapters.sql.roll_ups import RollUps
from serving.adapters.sql.subscriptions import note_prices, prices_per_month
from serving.adapters.sql.usage_sums import read_usage
from serving.domain.month import Month
from serving.domain.tenant import Tier
from serving.domain.usage import Invoice, UsageEvent, UsageQuery, UsageTotals, Verdict

IDS_IN_A_QUERY = 1000

_FIELDS = tuple(field.name for field in fields(UsageEvent))


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """stream_entry: its id in the stream that the event's key belongs to."""

    event: UsageEvent
    stream_entry: str


@dataclass(frozen=True, slots=True)
class Sums:
    requests: int
    pictures: int
    pixels: int
    received_bytes: int
    inference_microseconds: int


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """Of all events and of their roll-ups, as of one moment: the same, or something is wrong."""

    events: Sums
    hourly: Sums
    daily: Sums


class SqlLedger:
    """`Ledger` over SQL, and what moves events into it. Each method raises BackendUnavailable.

    Any number may record at once: rows are locked table by table, in one order, so none waits in a circle.
    """

    def __init__(self, database: Database, tiers: Mapping[str, Tier]) -> None:
        """tiers: whose prices `note_prices` notes."""
        self._database = database
        self._tiers = tiers
        self._noted_prices: dict[str, int] | None = None
        insert = sqlite.insert if database.url.get_backend_name() == "sqlite" else postgresql.insert
        self._add_events = insert(EVENTS).on_conflict_do_nothing().returning(EVENTS.c.request_id)
        self._roll_ups = RollUps(insert)

    async def usage(self, query: UsageQuery) -> Sequence[UsageTotals]:
        async with self._database.reading() as session:
            return await read_usage(session, query)

    async def invoice(self, month: Month, *, user: str | None = None) -> Invoice:
        """Of a month to come: the subscriptions as things stand. That of a past month stays as it is."""
        async with self._database.reading() as session:
            return await read_invoice(session, month, user=user)

    async def note_prices(self, now: datetime) -> None:
        """What subscriptions cost from now on, if the tier table says otherwise than when it was last noted.

        Where tables differ, as while gateways are replaced one by one, the one that was changed last counts.
        """
        prices = prices_per_month(self._tiers.values())
        if prices != self._noted_prices:
            async with self._database.writing() as session:
                await note_prices(session, prices, now)
            self._noted_prices = prices

    async def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Verdict]:
        """Take in the events that are new, with their sums: all of them or none.

        What each entry was, in the order given: of an event that comes twice, the first is new. An error may
        leave open which of both it is, where it hit the commit; recording the same entries again tells.
        """
        firsts: dict[str, LedgerEntry] = {}
        for entry in entries:
            firsts.setdefault(entry.event.request_id, entry)
        if not firsts:
            return []
        rows = [_row(firsts[event_id]) for event_id in sorted(firsts)]
        async with self._database.writing() as session:
            new = set(await session.scalars(self._add_events, rows))
            await self._roll_ups.add(session, (firsts[event_id].event for event_id in new))
            came_by = await _stream_entries(session, firsts.keys() - new)
        came_by |= {event_id: firsts[event_id].stream_entry for event_id in new}
        return _verdicts(entries, new, came_by)

    async def entry_ids(self, event_ids: Iterable[str]) -> Mapping[str, str]:
        """By which entry of its stream each event was recorded, of those that were."""
        async with self._database.reading() as session:
            return await _stream_entries(session, event_ids)

    async def month_totals(self, month: Month) -> Mapping[str, int]:
        """Pictures, by key."""
        totals = (
            select(DAILY.c.key_id, func.sum(DAILY.c.pictures))
            .where(DAILY.c.begin >= month.begin, DAILY.c.begin < month.end)
            .group_by(DAILY.c.key_id)
        )
        async with self._database.reading() as session:
            return {key_id: int(pictures) for key_id, pictures in await session.execute(totals)}

    async def used(self, key_id: str, month: Month) -> int:
        """Pictures of one key."""
        total = select(func.coalesce(func.sum(DAILY.c.pictures), 0)).where(
            DAILY.c.key_id == key_id, DAILY.c.begin >= month.begin, DAILY.c.begin < month.end
        )
        async with self._database.reading() as session:
            return int(await session.scalar(total) or 0)

    async def counts(self) -> LedgerCounts:
        """Reads all there is. One statement, so it is exact while others record."""
        columns = [EVENTS.c[name] for name in SUMS if name != "requests"]
        parts = [
            select(literal("events"), func.count(), *(func.coalesce(func.sum(each), 0) for each in columns)),
            *(
                select(literal(name), *(func.coalesce(func.sum(table.c[each]), 0) for each in SUMS))
                for name, table in (("hourly", HOURLY), ("daily", DAILY))
            ),
        ]
        async with self._database.reading() as session:
            rows = await session.execute(union_all(*parts))
            return LedgerCounts(**{name: Sums(*map(int, sums)) for name, *sums in rows})


def _row(entry: LedgerEntry) -> dict[str, Any]:
    return {"stream_entry": entry.stream_entry, **{name: getattr(entry.event, name) for name in _FIELDS}}


def _verdicts(entries: Iterable[LedgerEntry], new: set[str], came_by: Mapping[str, str]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for entry in entries:
        event_id = entry.event.request_id
        if event_id in new:
            new.remove(event_id)
            verdicts.append("new")
        else:
            verdicts.append("redelivered" if came_by[event_id] == entry.stream_entry else "duplicate")
    return verdicts


async def _stream_entries(session: AsyncSession, event_ids: Iterable[str]) -> dict[str, str]:
    columns = (EVENTS.c.request_id, EVENTS.c.stream_entry)
    rest = iter(event_ids)
    found: dict[str, str] = {}
    while piece := list(islice(rest, IDS_IN_A_QUERY)):
        rows = await session.execute(select(*columns).where(columns[0].in_(piece)))
        found.update((event_id, stream_entry) for event_id, stream_entry in rows)
    return found
