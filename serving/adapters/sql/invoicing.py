"""What is owed for a month: pictures, at the prices that they were admitted at, and subscriptions.

A key that was used owes the subscription that its last event of the month names; one that was not, the last
that its tier had in the month, if it could have been used. What has been written down since changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.sql.ledger_tables import DAILY
from serving.adapters.sql.subscriptions import Key, keys_that_worked, prices_before
from serving.domain.money import priced
from serving.domain.month import Month
from serving.domain.usage import Invoice, InvoiceLine


@dataclass(frozen=True, slots=True)
class _Used:
    """What a key was used for on one deployment, on the same terms."""

    user: str
    key_id: str
    tier: str
    deployment: str
    price_micros_per_1000: int
    price_micros_per_month: int
    pictures: int
    last_admitted_at: datetime


async def read_invoice(session: AsyncSession, month: Month, *, user: str | None) -> Invoice:
    used = await _used(session, month, user)
    keys = await keys_that_worked(session, month, user)
    prices_micros = await prices_before(session, month.end)
    used_ids = {row.key_id for row in used}
    lines = [
        *_pictures(used),
        *_subscriptions_of_used(used),
        *_subscriptions_of_unused((key for key in keys if key.id not in used_ids), prices_micros),
    ]
    return Invoice(month, tuple(sorted(lines, key=_place)))


async def _used(session: AsyncSession, month: Month, user: str | None) -> Sequence[_Used]:
    """One statement, so that pictures and subscriptions are of the same moment."""
    of = DAILY.c
    terms = (of.user, of.key_id, of.tier, of.deployment, of.price_micros_per_1000, of.price_micros_per_month)
    query = select(*terms, cast(func.sum(of.pictures), BigInteger), func.max(of.last_admitted_at))
    query = query.where(of.begin >= month.begin, of.begin < month.end).group_by(*terms)
    if user is not None:
        query = query.where(of.user == user)
    return [_Used(*row) for row in await session.execute(query)]


def _pictures(used: Iterable[_Used]) -> Iterator[InvoiceLine]:
    pictures: dict[tuple[str, str, str, str, int], int] = defaultdict(int)
    for row in used:
        pictures[row.user, row.key_id, row.tier, row.deployment, row.price_micros_per_1000] += row.pictures
    for (user, key_id, tier, deployment, price), count in pictures.items():
        yield InvoiceLine(user, key_id, tier, deployment, "pictures", count, price, priced(count, price))


def _subscriptions_of_used(used: Iterable[_Used]) -> Iterator[InvoiceLine]:
    last: dict[str, _Used] = {}
    for row in used:
        last[row.key_id] = max(row, last.get(row.key_id, row), key=_recency)
    for row in last.values():
        if row.price_micros_per_month:
            yield _subscription(row.user, row.key_id, row.tier, row.price_micros_per_month)


def _subscriptions_of_unused(keys: Iterable[Key], prices_micros: Mapping[str, int]) -> Iterator[InvoiceLine]:
    for key in keys:
        price_micros = prices_micros.get(key.tier)
        if price_micros is None:
            # No gateway knew the tier by then, so nobody could use the key; yet an operator should see it.
            yield replace(_subscription(key.user, key.id, key.tier, 0), quantity=0)
        elif price_micros:
            yield _subscription(key.user, key.id, key.tier, price_micros)


def _subscription(user: str, key_id: str, tier: str, price_micros: int) -> InvoiceLine:
    return InvoiceLine(user, key_id, tier, None, "subscription", 1, price_micros, price_micros)


def _recency(row: _Used) -> tuple[object, ...]:
    """Of two events at the same microsecond, any may be the last, but always the same one."""
    return (
        row.last_admitted_at,
        row.price_micros_per_month,
        row.tier,
        row.deployment,
        row.price_micros_per_1000,
    )


def _place(line: InvoiceLine) -> tuple[object, ...]:
    """Where in the invoice: of a key in a tier, pictures come before the subscription."""
    return line.user, line.key_id, line.tier, line.what, line.deployment or "", line.unit_micros
