"""Who is asking, and on what terms."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from serving.domain.money import micros

LOWEST_PRIORITY = 3
"""As many levels as Triton's queues of our models have."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One row of the operator's tier table (`tiers.yaml`). None means unlimited.

    rate_limit_per_minute, burst, monthly_quota: in pictures.
    max_concurrent_requests: of one key, under way at a time, on all gateways together.
    priority: 1 is served first, wherever requests wait: for a thread, for a batch, in Triton's queue.
    price_per_1000, price_per_month: for a thousand pictures, and whatever was used; in one currency, with at
    most six decimals.
    """

    name: str
    rate_limit_per_minute: int
    burst: int
    monthly_quota: int | None
    max_pictures_per_request: int
    gpu: bool
    max_concurrent_requests: int | None = None
    priority: int = LOWEST_PRIORITY
    price_per_1000: Decimal = Decimal(0)
    price_per_month: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        if min(self.rate_limit_per_minute, self.burst, self.max_pictures_per_request) < 1:
            raise ValueError("rate_limit_per_minute, burst and max_pictures_per_request are at least 1")
        if self.max_concurrent_requests is not None and self.max_concurrent_requests < 1:
            raise ValueError("max_concurrent_requests is None or at least 1")
        if not 1 <= self.priority <= LOWEST_PRIORITY:
            raise ValueError(f"priority is 1 to {LOWEST_PRIORITY}")
        if self.monthly_quota is not None and self.monthly_quota < 0:
            raise ValueError("monthly_quota is None or at least 0")
        if not all(price.is_finite() and price >= 0 for price in (self.price_per_1000, self.price_per_month)):
            raise ValueError("a price is at least 0")
        for price in (self.price_per_1000, self.price_per_month):
            micros(price)  # raises ValueError: nothing that is billed is ever rounded


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a valid key. `models` None means every model, now and later."""

    key_id: str
    user: str
    tier: Tier
    models: frozenset[str] | None
    expires_at: datetime | None = None

    @property
    def only_model(self) -> str | None:
        """What a request means that names no model; None where this key is not bound to a single one."""
        return next(iter(self.models)) if self.models is not None and len(self.models) == 1 else None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models
