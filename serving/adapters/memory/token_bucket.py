"""A token bucket in whole numbers, so that no rounding ever adds or loses a token."""

from __future__ import annotations

from dataclasses import dataclass

from serving.adapters.limits import UNITS_PER_TOKEN
from serving.domain.tenant import Tier


@dataclass(slots=True)
class TokenBucket:
    """What was in it at some time. Whoever looks says by which tier's terms it has been refilled since.

    Times are in microseconds on one line that never goes back; levels are in units.
    """

    level_units: int
    filled_at_us: int

    @classmethod
    def full(cls, tier: Tier, now_us: int) -> TokenBucket:
        return cls(tier.burst * UNITS_PER_TOKEN, now_us)

    def level(self, tier: Tier, now_us: int) -> int:
        refilled = self.level_units + (now_us - self.filled_at_us) * tier.rate_limit_per_minute
        return min(tier.burst * UNITS_PER_TOKEN, refilled)

    def wait_until_full_us(self, tier: Tier, now_us: int) -> int:
        missing = tier.burst * UNITS_PER_TOKEN - self.level(tier, now_us)
        return -(-missing // tier.rate_limit_per_minute)

    def take(self, tokens: int, tier: Tier, now_us: int) -> None:
        self.level_units = self.level(tier, now_us) - tokens * UNITS_PER_TOKEN
        self.filled_at_us = now_us

    def give_back(self, tokens: int) -> None:
        """What overfills it spills when somebody looks."""
        self.level_units += tokens * UNITS_PER_TOKEN
