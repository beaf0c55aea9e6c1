"""Tiers for tests that care about one or two of their limits."""

from __future__ import annotations

from serving.domain.tenant import Tier


def make_tier(
    *,
    name: str = "test",
    rate: int = 6000,
    burst: int = 100,
    monthly_quota: int | None = None,
    max_pictures: int = 4,
    priority: int = 1,
) -> Tier:
    return Tier(
        name=name,
        rate_limit_per_minute=rate,
        burst=burst,
        monthly_quota=monthly_quota,
        max_pictures_per_request=max_pictures,
        gpu=False,
        priority=priority,
    )
