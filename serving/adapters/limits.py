"""What a tier's limits mean in numbers and words, wherever the counting is done."""

from __future__ import annotations

from datetime import datetime

from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Tier
from serving.errors import InvalidRequest, QuotaExceeded, RateLimited, TooManyAtOnce

# A microsecond refills `rate_limit_per_minute` units: a token is as many units as a minute has microseconds.
UNITS_PER_TOKEN = 60_000_000
MICROSECONDS = 1_000_000
ASK_AGAIN_SECONDS = 1.0
"""Where it hangs on requests that are under way, which end when they end."""


def refuse_impossible(tier: Tier, pictures: int) -> None:
    """Raises InvalidRequest for more than any wait would bring; ValueError for nothing."""
    if pictures < 1:
        raise ValueError(f"a request has at least one picture, not {pictures}")
    if pictures > tier.burst:
        raise InvalidRequest(
            f"{pictures} pictures in one request are more than this key's burst of {tier.burst}."
        )


def over_quota(tier: Tier, pictures: int, state: LimitState) -> QuotaExceeded:
    return QuotaExceeded(
        f"{state.quota} of this month's {tier.monthly_quota} pictures are left; {pictures} were asked for.",
        retry_after_seconds=state.month_ends_seconds,
        limits=state,
    )


def over_rate(tier: Tier, missing_units: int, state: LimitState) -> RateLimited:
    """missing_units: in the bucket, for what was asked."""
    return RateLimited(
        f"This key may send {tier.rate_limit_per_minute} pictures a minute and {tier.burst} at once.",
        retry_after_seconds=_refill_seconds(tier, missing_units),
        limits=state,
    )


def over_concurrency(tier: Tier, state: LimitState) -> TooManyAtOnce:
    return TooManyAtOnce(
        f"This key may have {tier.max_concurrent_requests} requests under way at a time.",
        retry_after_seconds=ASK_AGAIN_SECONDS,
        limits=state,
    )


def limit_state(
    tier: Tier,
    *,
    level_units: int,
    used: int,
    leases: int,
    now: datetime,
    units_per_picture: int = UNITS_PER_TOKEN,
) -> LimitState:
    missing_units = 0
    if level_units < tier.burst * UNITS_PER_TOKEN:
        missing_units = units_per_picture - (
            level_units % units_per_picture if level_units > 0 else level_units
        )
    quota, most = tier.monthly_quota, tier.max_concurrent_requests
    return LimitState(
        tokens=max(0, level_units) // units_per_picture,
        next_token_seconds=_refill_seconds(tier, missing_units),
        quota=None if quota is None else max(0, quota - used),
        month_ends_seconds=_month_ends_seconds(now),
        concurrent=None if most is None else max(0, most - leases),
    )


def _refill_seconds(tier: Tier, units: int) -> float:
    """In whole microseconds, and not one less than it takes."""
    return -(-units // tier.rate_limit_per_minute) / MICROSECONDS


def _month_ends_seconds(now: datetime) -> float:
    return (Month.of(now).end - now).total_seconds()
