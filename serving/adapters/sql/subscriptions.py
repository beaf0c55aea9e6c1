"""Who owes a subscription for a month, and at what price: by what was kept then, not as things are now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from sqlalchemy import Row, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.sql.key_tables import ApiKeyRow, KeyChangeRow
from serving.adapters.sql.ledger_tables import SubscriptionPriceRow
from serving.domain.money import micros
from serving.domain.month import Month
from serving.domain.tenant import Tier

Key: TypeAlias = "Row[str, str, str, datetime, datetime | None, datetime | None]"
"""id, user, tier, created_at, revoked_at, expires_at."""
_Switch: TypeAlias = "Row[str, datetime, str]"

_ENABLED, _DISABLED = "user_enabled", "user_disabled"


def prices_per_month(tiers: Iterable[Tier]) -> dict[str, int]:
    """In micros, by tier."""
    return {tier.name: micros(tier.price_per_month) for tier in tiers}


async def note_prices(session: AsyncSession, prices_micros: Mapping[str, int], now: datetime) -> None:
    """From now on they are these; nothing is written where they were before."""
    known = await prices_before(session, None)
    changed = [
        {"tier": tier, "since": now, "price_micros_per_month": price}
        for tier, price in prices_micros.items()
        if known.get(tier) != price
    ]
    if changed:
        await session.execute(insert(SubscriptionPriceRow), changed)


async def prices_before(session: AsyncSession, moment: datetime | None) -> dict[str, int]:
    """The last price of each tier that was noted before that moment, or at all, in micros."""
    price = SubscriptionPriceRow
    query = select(price.tier, price.price_micros_per_month).order_by(price.since)
    if moment is not None:
        query = query.where(price.since < moment)
    return {row.tier: row.price_micros_per_month for row in await session.execute(query)}


async def keys_that_worked(session: AsyncSession, month: Month, user: str | None) -> Sequence[Key]:
    """At some time of the month, be it for a moment, while their users were not disabled."""
    key = ApiKeyRow
    query = select(key.id, key.user, key.tier, key.created_at, key.revoked_at, key.expires_at).where(
        key.created_at < month.end,
        or_(key.revoked_at.is_(None), key.revoked_at > month.begin),
        or_(key.expires_at.is_(None), key.expires_at > month.begin),
    )
    if user is not None:
        query = query.where(key.user == user)
    switches = await _switches(session, month, user)
    return [key for key in await session.execute(query) if _was_enabled(key, month, switches[key.user])]


async def _switches(session: AsyncSession, month: Month, user: str | None) -> Mapping[str, list[_Switch]]:
    """By user, oldest first: when they were disabled and enabled, until the month's end."""
    change = KeyChangeRow
    query = select(change.user, change.at, change.action).where(
        change.action.in_((_ENABLED, _DISABLED)), change.at < month.end
    )
    if user is not None:
        query = query.where(change.user == user)
    found: dict[str, list[_Switch]] = defaultdict(list)
    for switch in await session.execute(query.order_by(change.id)):
        found[switch.user].append(switch)
    return found


def _was_enabled(key: Key, month: Month, switches: Sequence[_Switch]) -> bool:
    """For a moment of that part of the month in which the key worked otherwise."""
    begin = max(key.created_at, month.begin)
    end = min(month.end, key.revoked_at or month.end, key.expires_at or month.end)
    before = [switch.action for switch in switches if switch.at <= begin]
    if not before or before[-1] == _ENABLED:
        return True
    return any(switch.action == _ENABLED and begin < switch.at < end for switch in switches)
