"""A token bucket in whole numbers, so that no rounding ever adds or loses a token."""

from __future__ import annotations

from dataclasses import dataclass

from serving.domain.tenant import Tier

# A microsecond refills `rate_limit_per_minute` units: a token is as many units as a minute has microseconds.
UNITS_PER_TOKEN = 60_000_000


@dataclass(slots=True)
class TokenBucket:
    """Times are in microseconds on one line that never goes back; levels are in units."""

    rate_per_minute: int
    capacity_units: int
    level_units: int
    filled_at_us: int

    @classmethod
    def full(cls, tier: Tier, now_us: int) -> TokenBucket:
        capacity = tier.burst * UNITS_PER_TOKEN
        return cls(tier.rate_limit_per_minute, capacity, capacity, now_us)

    def refill(self, now_us: int) -> None:
        refilled = (now_us - self.filled_at_us) * self.rate_per_minute
        self.level_units = min(self.capacity_units, self.level_units + refilled)
        self.filled_at_us = now_us

    def follow(self, tier: Tier) -> None:
        """From now on by this tier's terms; what is in the bucket stays, as far as it fits."""
        self.rate_per_minute = tier.rate_limit_per_minute
        self.capacity_units = tier.burst * UNITS_PER_TOKEN
        self.level_units = min(self.capacity_units, self.level_units)

    def wait_us(self, tokens: int) -> int:
        """Until `tokens` are there, if nobody else takes any; 0 when they are."""
        return self._wait_us_for(tokens * UNITS_PER_TOKEN)

    def wait_until_full_us(self) -> int:
        return self._wait_us_for(self.capacity_units)

    def take(self, tokens: int) -> None:
        self.level_units -= tokens * UNITS_PER_TOKEN

    def give_back(self, tokens: int) -> None:
        self.level_units = min(self.capacity_units, self.level_units + tokens * UNITS_PER_TOKEN)

    def _wait_us_for(self, units: int) -> int:
        missing = max(0, units - self.level_units)
        return -(-missing // self.rate_per_minute)
