"""`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11).

::

    RateLimit-Policy: "burst";q=20;w=12;visiongate-qu="pictures",
                      "month";q=100000;w=2592000;visiongate-qu="pictures",
                      "concurrent";q=4;qu="concurrent-requests"
    RateLimit:        "burst";r=19;t=1, "month";r=99999;t=864000, "concurrent";r=3

`burst` is the token bucket: `q` is what it holds and `w` how long it takes to fill. `w` of `month` is the
month's length, for that is what `q` is for. A picture is no quota unit of the draft's registry, and requests,
its default, is true of one picture a request only; so a parameter of our own names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache

from serving.api.structured_fields import LARGEST_INTEGER, serialised_list
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Tier

_Member = tuple[str, dict[str, int | str]]
_IN_PICTURES: dict[str, int | str] = {"visiongate-qu": "pictures"}


def policy_field(tier: Tier, now: datetime) -> str:
    """`RateLimit-Policy` of a key in this tier; it stays the same for a month."""
    return _policy_field(tier, Month.of(now))


def limit_field(state: LimitState) -> str:
    """`RateLimit`: what is left of each policy and, where that is known, in how many seconds it is more."""
    return serialised_list(_limits(state))


def wait_seconds(state: LimitState, policies: Iterable[str]) -> int:
    """The longest `t` of these policies: `Retry-After` must not say less (section 6)."""
    waits = {name: parameters.get("t", 0) for name, parameters in _limits(state)}
    return max((int(waits.get(name, 0)) for name in policies), default=0)


@lru_cache(maxsize=256)  # more than anybody has tiers: each is written once a month
def _policy_field(tier: Tier, month: Month) -> str:
    return serialised_list(_policies(tier, month))


def _policies(tier: Tier, month: Month) -> Iterator[_Member]:
    fill_seconds = -(-tier.burst * 60 // tier.rate_limit_per_minute)
    yield "burst", {"q": _whole(tier.burst), "w": _whole(fill_seconds), **_IN_PICTURES}
    if tier.monthly_quota is not None:
        month_seconds = int((month.end - month.begin).total_seconds())
        yield "month", {"q": _whole(tier.monthly_quota), "w": month_seconds, **_IN_PICTURES}
    if tier.max_concurrent_requests is not None:
        yield "concurrent", {"q": _whole(tier.max_concurrent_requests), "qu": "concurrent-requests"}


def _limits(state: LimitState) -> Iterator[_Member]:
    # A full bucket never holds more than now, so it has no `t`; nor has what ends when other requests do.
    yield "burst", {"r": _whole(state.tokens), **_until(state.next_token_seconds)}
    if state.quota is not None:
        yield "month", {"r": _whole(state.quota), **_until(state.month_ends_seconds)}
    if state.concurrent is not None:
        yield "concurrent", {"r": _whole(state.concurrent)}


def _until(seconds: float) -> dict[str, int | str]:
    return {"t": _whole(math.ceil(seconds))} if seconds > 0 else {}


def _whole(number: int) -> int:
    """As the field can say it: a key over a quota that was lowered has nothing left, and not less."""
    return min(max(0, number), LARGEST_INTEGER)
