"""What has been used in a period, by group, from the roll-ups: hourly ones only where a day is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, Table, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.sql.ledger_tables import DAILY, HOURLY, SUMS
from serving.adapters.sql.roll_ups import day_of
from serving.domain.money import priced
from serving.domain.usage import GroupBy, UsageQuery, UsageTotals

_ALMOST_A_DAY = timedelta(days=1) - timedelta(microseconds=1)

_COLUMNS: Mapping[GroupBy, str] = {
    "key": "key_id",
    "user": "user",
    "deployment": "deployment",
    "tier": "tier",
    "day": "begin",
    "hour": "begin",
}
_NAMES: Mapping[GroupBy, Callable[[Any], str]] = {
    "day": lambda begin: str(begin.isoformat()[:10]),
    "hour": lambda begin: str(begin.isoformat()[:13]),
}

_NOTHING = (0,) * (len(SUMS) + 1)


async def read_usage(session: AsyncSession, query: UsageQuery) -> Sequence[UsageTotals]:
    """One statement, so that all of it is of one moment."""
    name = _NAMES.get(query.group_by, str)
    by_price: dict[tuple[str, int], Sequence[int]] = {}
    statement = union_all(*(_sums(query, *piece) for piece in _pieces(query)))
    for group, price, *more in await session.execute(statement):
        key = name(group), price
        by_price[key] = _added(by_price.get(key), map(int, more))
    totals: dict[str, Sequence[int]] = {"": _NOTHING} if query.group_by == "total" else {}
    for (group, price), sums in by_price.items():
        amount_micros = priced(sums[SUMS.index("pictures")], price)
        totals[group] = _added(totals.get(group), (*sums, amount_micros))
    return [UsageTotals(group, *totals[group]) for group in sorted(totals)]


def _added(so_far: Sequence[int] | None, more: Iterable[int]) -> Sequence[int]:
    return [a + b for a, b in zip(so_far or _NOTHING, more, strict=False)]


def _pieces(query: UsageQuery) -> Iterator[tuple[Table, datetime, datetime]]:
    begin, end = query.begin.astimezone(UTC), query.end.astimezone(UTC)
    first_day, last_day = day_of(begin + _ALMOST_A_DAY), day_of(end)
    if query.group_by == "hour" or first_day >= last_day:
        yield HOURLY, begin, end
        return
    yield DAILY, first_day, last_day
    if begin < first_day:
        yield HOURLY, begin, first_day
    if last_day < end:
        yield HOURLY, last_day, end


def _sums(query: UsageQuery, table: Table, begin: datetime, end: datetime) -> Select[Any]:
    of = table.c
    group = literal("") if query.group_by == "total" else of[_COLUMNS[query.group_by]]
    sums = (func.sum(of[name]) for name in SUMS)
    statement = select(group, of.price_micros_per_1000, *sums).where(of.begin >= begin, of.begin < end)
    for name in ("key_id", "user", "deployment"):
        if (wanted := getattr(query, name)) is not None:
            statement = statement.where(of[name] == wanted)
    return statement.group_by(group, of.price_micros_per_1000)
