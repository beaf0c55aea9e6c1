"""`RateLimit-Policy` and `RateLimit`, read back by another parser: what clients make of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.rate_limit_fields import limit_field, policy_field, wait_seconds
from serving.api.structured_fields import LARGEST_INTEGER
from serving.domain.limits import LimitState
from tests.support.structured_fields import read_list
from tests.support.tiers import make_tier

NOVEMBER = datetime(2026, 11, 21, 13, tzinfo=UTC)
FULL = LimitState(tokens=20, next_token_seconds=0, quota=None, month_ends_seconds=5.5, concurrent=None)


def members(field: str) -> dict[str, dict[str, Any]]:
    parsed = read_list(field)
    names = [name for name, _ in parsed]
    assert all(type(name) is str for name in names)
    assert len(set(names)) == len(names)
    return dict(parsed)


def test_a_tier_without_quota_and_concurrency_has_one_policy() -> None:
    assert (
        policy_field(make_tier(rate=100, burst=20), NOVEMBER) == '"burst";q=20;w=12;visiongate-qu="pictures"'
    )


def test_every_limit_of_a_tier_is_a_policy() -> None:
    tier = replace(make_tier(rate=100, burst=20, monthly_quota=100_000), max_concurrent_requests=4)

    assert members(policy_field(tier, NOVEMBER)) == {
        "burst": {"q": 20, "w": 12, "visiongate-qu": "pictures"},
        "month": {"q": 100_000, "w": 30 * 86_400, "visiongate-qu": "pictures"},
        "concurrent": {"q": 4, "qu": "concurrent-requests"},
    }


@pytest.mark.parametrize(
    ("rate", "burst", "window_seconds"),
    [(60, 60, 60), (7, 1, 9), (60_000, 1, 1), (1, 1000, 60_000), (59, 60, 62)],
)
def test_the_window_of_the_bucket_is_how_long_it_takes_to_fill(
    rate: int, burst: int, window_seconds: int
) -> None:
    policies = members(policy_field(make_tier(rate=rate, burst=burst), NOVEMBER))
    assert policies["burst"]["w"] == window_seconds


@pytest.mark.parametrize(
    ("now", "days"),
    [
        (datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), 28),
        (datetime(2028, 2, 1, tzinfo=UTC), 29),
        (datetime(2026, 12, 31, tzinfo=UTC), 31),
    ],
)
def test_the_window_of_the_quota_is_the_month(now: datetime, days: int) -> None:
    policies = members(policy_field(make_tier(monthly_quota=0), now))
    assert policies["month"] == {"q": 0, "w": days * 86_400, "visiongate-qu": "pictures"}


@pytest.mark.parametrize(
    ("state", "field"),
    [
        (FULL, '"burst";r=20'),
        (replace(FULL, tokens=0, next_token_seconds=0.001), '"burst";r=0;t=1'),
        (replace(FULL, tokens=3, next_token_seconds=6.0), '"burst";r=3;t=6'),
        (replace(FULL, quota=7), '"burst";r=20, "month";r=7;t=6'),
        (replace(FULL, concurrent=0), '"burst";r=20, "concurrent";r=0'),
        # A quota that was lowered below what is used, a bucket that owes tokens.
        (replace(FULL, tokens=-4, next_token_seconds=30, quota=-9), '"burst";r=0;t=30, "month";r=0;t=6'),
        (replace(FULL, quota=10**18), f'"burst";r=20, "month";r={LARGEST_INTEGER};t=6'),
    ],
)
def test_what_is_left_is_whole_and_not_below_zero(state: LimitState, field: str) -> None:
    assert limit_field(state) == field
    assert members(field)


@given(
    st.builds(
        LimitState,
        tokens=st.integers(-(10**20), 10**20),
        next_token_seconds=st.floats(0, 1e9),
        quota=st.none() | st.integers(-(10**20), 10**20),
        month_ends_seconds=st.floats(0, 1e9),
        concurrent=st.none() | st.integers(-5, 10**6),
    )
)
def test_whatever_the_state_the_field_is_one_that_clients_read(state: LimitState) -> None:
    limits = members(limit_field(state))

    assert set(limits) <= {"burst", "month", "concurrent"}
    assert ("month" in limits, "concurrent" in limits) == (
        state.quota is not None,
        state.concurrent is not None,
    )
    for parameters in limits.values():
        assert all(type(value) is int and value >= 0 for value in parameters.values())
        assert parameters.get("t", 1) >= 1


@pytest.mark.parametrize(
    ("policies", "seconds"), [((), 0), (("burst",), 4), (("month",), 6), (("concurrent",), 0), (("x",), 0)]
)
def test_a_refusal_waits_for_the_limits_that_refused_it(policies: tuple[str, ...], seconds: int) -> None:
    state = replace(FULL, next_token_seconds=3.2, quota=1, concurrent=1)
    assert wait_seconds(state, policies) == seconds
