"""Sums of usage events by hour and by day: how they are made, and added to those in the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import Table, case
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.sql.ledger_tables import DAILY, HOURLY, SUMS
from serving.domain.usage import UsageEvent

Insert: TypeAlias = "postgresql.Insert | sqlite.Insert"


def hour_of(moment: datetime) -> datetime:
    """Its first moment, in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    """Its first moment, in UTC."""
    return hour_of(moment).replace(hour=0)


class RollUps:
    """insert: the dialect's own, which can add to a row that is there."""

    def __init__(self, insert: Callable[[Table], Insert]) -> None:
        self._steps = tuple(
            (_adding(table, insert(table)), begin_of)
            for table, begin_of in ((HOURLY, hour_of), (DAILY, day_of))
        )

    async def add(self, session: AsyncSession, events: Iterable[UsageEvent]) -> None:
        """Within the session's transaction. Rows are locked in one order, whoever adds."""
        events = tuple(events)
        for adding, begin_of in self._steps:
            if rows := _rolled_up(events, begin_of):
                await session.execute(adding, rows)


def _adding(table: Table, insert: Insert) -> Insert:
    """An insertion that adds to the row instead, where its key is in the table."""
    added = insert.excluded
    is_later = added.last_admitted_at > table.c.last_admitted_at
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={
            **{name: table.c[name] + added[name] for name in SUMS},
            "last_admitted_at": case((is_later, added.last_admitted_at), else_=table.c.last_admitted_at),
        },
    )


def _rolled_up(
    events: Iterable[UsageEvent], begin_of: Callable[[datetime], datetime]
) -> list[dict[str, Any]]:
    """The rows, in the order of their primary key."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in events:
        terms = {
            "begin": begin_of(event.admitted_at),
            "key_id": event.key_id,
            "user": event.user,
            "deployment": event.deployment,
            "tier": event.tier,
            "price_micros_per_1000": event.price_micros_per_1000,
            "price_micros_per_month": event.price_micros_per_month,
        }
        key = tuple(terms.values())
        row = rows.get(key)
        if row is None:
            row = rows[key] = {**terms, **dict.fromkeys(SUMS, 0), "last_admitted_at": event.admitted_at}
        row["requests"] += 1
        row["pictures"] += event.pictures
        row["pixels"] += event.pixels
        row["received_bytes"] += event.received_bytes
        row["inference_microseconds"] += event.inference_microseconds
        row["last_admitted_at"] = max(row["last_admitted_at"], event.admitted_at)
    return [rows[key] for key in sorted(rows)]
