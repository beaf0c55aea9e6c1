"""The bounds of the in-memory form; what every form does is in `tests/contract`."""

from __future__ import annotations

import pytest

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.domain.tenant import Principal, Tier
from serving.errors import Overloaded, QuotaExceeded, RateLimited


def owner(key_id: str, *, quota: int = 1000) -> Principal:
    tier = Tier("test", 60, 10, quota, max_pictures_per_request=10, gpu=False)
    return Principal(key_id, "ada", tier, models=None)


async def test_only_a_bucket_that_is_full_again_makes_room() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_buckets=2)
    await admission.admit(owner("key_a"), request_id="a", pictures=10)
    clock.advance(5)
    await admission.admit(owner("key_b"), request_id="b", pictures=10)
    with pytest.raises(Overloaded) as caught:
        await admission.admit(owner("key_c"), request_id="c", pictures=1)
    assert caught.value.retry_after_seconds == 5

    clock.advance(5)

    await admission.admit(owner("key_c"), request_id="c", pictures=1)
    with pytest.raises(RateLimited):
        await admission.admit(owner("key_b"), request_id="b2", pictures=10)


async def test_a_bucket_that_made_room_takes_no_quota_along() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_buckets=1)
    await admission.admit(owner("key_a", quota=10), request_id="a", pictures=10)
    clock.advance(10)
    await admission.admit(owner("key_b"), request_id="b", pictures=1)
    clock.advance(10)

    with pytest.raises(QuotaExceeded):
        await admission.admit(owner("key_a", quota=10), request_id="a2", pictures=1)


async def test_giving_back_to_a_bucket_that_made_room_returns_the_quota() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_buckets=1)
    reservation = await admission.admit(owner("key_a", quota=10), request_id="a", pictures=10)
    clock.advance(10)
    await admission.admit(owner("key_b"), request_id="b", pictures=1)
    clock.advance(10)

    await admission.give_back(reservation)

    await admission.admit(owner("key_a", quota=10), request_id="a2", pictures=10)
