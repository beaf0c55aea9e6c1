"""How long the chaos suite takes, by which course of events, and on which tiers.

`VISIONGATE_TEST_CHAOS=long` (`make chaos`) makes the rounds many and the outages long;
`VISIONGATE_TEST_CHAOS_SEED` names another course of events.
"""

from __future__ import annotations

import os

import yaml

IS_LONG = os.environ.get("VISIONGATE_TEST_CHAOS") == "long"
SEED = int(os.environ.get("VISIONGATE_TEST_CHAOS_SEED", "20261121"))


def tier(**terms: object) -> dict[str, object]:
    """A row of the tier table, without limits that nobody asks for."""
    return {
        "rate_limit_per_minute": 1,  # no test takes the minute after which there is one more
        "burst": 1_000_000,
        "monthly_quota": None,
        "max_pictures_per_request": 16,
        "max_concurrent_requests": None,
        "gpu": True,
        "priority": 3,
        "price_per_1000": "0.50",
        "price_per_month": "0",
        **terms,
    }


TIERS = {
    "unlimited": tier(rate_limit_per_minute=60_000_000),
    "steady": tier(rate_limit_per_minute=2400, burst=40),
    "burst-1": tier(burst=1, max_pictures_per_request=1),
    "burst-64": tier(burst=64),
    "burst-137": tier(burst=137),
    "burst-199": tier(burst=199, rate_limit_per_minute=3),
    "quota-73": tier(monthly_quota=73),
    "five-at-once": tier(max_concurrent_requests=5),
    "edited": tier(max_pictures_per_request=1),
}


def tier_table(**changed: dict[str, object]) -> str:
    return yaml.safe_dump({"tiers": TIERS | changed})
