"""What is left of a key's limits, as admission saw it: what the `RateLimit` fields say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LimitState:
    """After the request it came with. None where the tier sets no limit.

    tokens: whole pictures that could be sent now. next_token_seconds: until there is one more; 0 where the
    bucket is full. quota and month_ends_seconds: pictures left this month, and until the next begins.
    concurrent: requests of this key that could be begun now.
    """

    tokens: int
    next_token_seconds: float
    quota: int | None
    month_ends_seconds: float
    concurrent: int | None
