"""The bounds of the in-memory form, and what the fallback asks of it; the rest is in `tests/contract`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.adapters.memory.meter import InMemoryMeter
from serving.errors import Overloaded, QuotaExceeded, RateLimited
from tests.support.requests import ANSWER, admit, admitted, event_of, principal


async def test_only_an_account_that_is_full_again_makes_room() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_accounts=2)
    await admission.give_back(await admit(admission, principal(key_id="key_z")))
    await admit(admission, principal(key_id="key_a"), pictures=10, lease_seconds=1)
    clock.advance(5)
    await admit(admission, principal(key_id="key_b"), pictures=10, lease_seconds=1)
    with pytest.raises(Overloaded) as caught:
        await admit(admission, principal(key_id="key_c"))
    assert caught.value.retry_after_seconds == 5

    clock.advance(5)

    await admit(admission, principal(key_id="key_c"))
    with pytest.raises(RateLimited):
        await admit(admission, principal(key_id="key_b"), pictures=10)


async def test_an_account_with_a_request_under_way_makes_no_room() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_accounts=1)
    await admit(admission, principal(key_id="key_a"), lease_seconds=30)
    clock.advance(20)

    with pytest.raises(Overloaded) as caught:
        await admit(admission, principal(key_id="key_b"))

    assert caught.value.retry_after_seconds == 10


async def test_an_account_that_made_room_takes_no_quota_along() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, max_accounts=1)
    meter = InMemoryMeter(admission)
    reservation = await admit(admission, principal(quota=10), pictures=10)
    await meter.settle(event_of(reservation), reservation, ANSWER)
    clock.advance(10)
    other = await admit(admission, principal(key_id="key_b"))
    await admission.give_back(other)

    with pytest.raises(QuotaExceeded):
        await admit(admission, principal(quota=10))


@pytest.mark.parametrize(
    ("gateways", "expected"),
    [
        (1, 10),
        (3, 3),  # a token is left, which is no whole picture
        (10, 1),
        (64, 1),  # a picture never costs more than the burst
    ],
)
async def test_each_of_several_gateways_admits_its_share(gateways: int, expected: int) -> None:
    admission = InMemoryAdmission(ManualClock(), picture_costs=lambda: gateways)

    assert await admitted(admission, principal(burst=10), requests=20) == expected


async def test_limits_are_said_in_pictures_whatever_they_cost() -> None:
    clock = ManualClock()
    admission = InMemoryAdmission(clock, picture_costs=lambda: 4)
    reservation = await admit(admission, principal(rate=60, burst=10))
    clock.advance(1)

    later = await admission.limits(principal(rate=60, burst=10))

    assert (reservation.limits.tokens, reservation.limits.next_token_seconds) == (1, 2)  # 6 tokens are left
    assert (later.tokens, later.next_token_seconds) == (1, 1)


async def test_what_pictures_cost_is_given_back_as_it_was_taken() -> None:
    gateways = 2
    admission = InMemoryAdmission(ManualClock(), picture_costs=lambda: gateways)
    reservation = await admit(admission, principal(burst=10), pictures=4)
    gateways = 1

    await admission.give_back(reservation)

    assert (await admission.limits(principal(burst=10))).tokens == 10


async def test_it_goes_on_from_what_is_known_from_elsewhere() -> None:
    admission = InMemoryAdmission(ManualClock())
    caller = principal(burst=10, quota=100)

    admission.resume(caller, 3, used=98)

    assert (await admission.limits(caller)).tokens == 3
    with pytest.raises(QuotaExceeded):
        await admit(admission, caller, pictures=3)
    assert await admitted(admission, caller, requests=5) == 2


@pytest.mark.parametrize(("tokens", "expected"), [(-5, 0), (0, 0), (11, 10)])
async def test_what_is_known_from_elsewhere_fits_the_bucket(tokens: int, expected: int) -> None:
    admission = InMemoryAdmission(ManualClock())

    admission.resume(principal(burst=10), tokens)

    assert (await admission.limits(principal(burst=10))).tokens == expected


async def test_it_admits_at_the_time_that_it_is_told() -> None:
    moment = datetime(2026, 2, 28, 23, 59, tzinfo=UTC)
    admission = InMemoryAdmission(ManualClock(), admitted_at=lambda: moment)

    reservation = await admit(admission, principal())

    assert reservation.admitted_at == moment
    assert reservation.limits.month_ends_seconds == 60
    assert admission.charged("key_a", reservation.month) == 1
