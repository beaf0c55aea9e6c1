"""Every form of `Admission` lets through what the tier says, to the picture."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal
from serving.errors import InvalidRequest, LimitReached, QuotaExceeded, RateLimited, TooManyAtOnce
from serving.ports import Reservation
from tests.support.account_forms import Accounts, NewAccounts
from tests.support.requests import LEASE_SECONDS, admit, admitted, principal, settle

END_OF_JANUARY = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("burst", "pictures", "expected"),
    [
        (1, 1, 1),  # the smallest bucket
        (10, 1, 10),
        (10, 3, 3),  # the last token is not enough for a whole batch, and stays
        (10, 10, 1),
        (137, 1, 137),
        (199, 2, 99),
    ],
)
async def test_two_hundred_at_once_get_exactly_the_burst(
    accounts: Accounts, burst: int, pictures: int, expected: int
) -> None:
    caller = principal(burst=burst)

    assert await admitted(accounts.admission, caller, requests=200, pictures=pictures) == expected


@pytest.mark.parametrize(
    ("quota", "pictures", "expected"),
    [
        (0, 1, 0),
        (100, 1, 100),
        (100, 7, 14),  # two pictures are left, which no whole batch fits into
    ],
)
async def test_two_hundred_at_once_get_exactly_the_quota(
    accounts: Accounts, quota: int, pictures: int, expected: int
) -> None:
    caller = principal(burst=10_000, quota=quota)

    assert await admitted(accounts.admission, caller, requests=200, pictures=pictures) == expected


@pytest.mark.parametrize("at_once", [1, 64, 199])
async def test_two_hundred_at_once_get_exactly_the_places_there_are(accounts: Accounts, at_once: int) -> None:
    caller = principal(burst=10_000, at_once=at_once)

    assert await admitted(accounts.admission, caller, requests=200) == at_once


async def test_keys_do_not_share_a_bucket(accounts: Accounts) -> None:
    first, second = principal(key_id="key_a", burst=5), principal(key_id="key_b", burst=7)

    of_first, of_second = await asyncio.gather(
        admitted(accounts.admission, first, requests=100), admitted(accounts.admission, second, requests=100)
    )

    assert (of_first, of_second) == (5, 7)


async def test_a_refused_batch_takes_nothing(accounts: Accounts) -> None:
    caller = principal(burst=10, quota=100, at_once=3)
    await admit(accounts.admission, caller, pictures=8)
    with pytest.raises(RateLimited):
        await admit(accounts.admission, caller, pictures=3)

    await admit(accounts.admission, caller, pictures=2)

    assert accounts.charged(caller.key_id, Month.of(accounts.now)) == 10
    assert (await accounts.admission.limits(caller)).concurrent == 1


@pytest.mark.parametrize("pictures", [11, 1000])
async def test_more_than_the_burst_is_invalid_however_long_one_waits(
    accounts: Accounts, pictures: int
) -> None:
    with pytest.raises(InvalidRequest, match="burst of 10"):
        await admit(accounts.admission, principal(burst=10), pictures=pictures)


@pytest.mark.parametrize("pictures", [0, -1])
async def test_a_request_without_pictures_is_a_bug(accounts: Accounts, pictures: int) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        await admit(accounts.admission, principal(), pictures=pictures)


async def test_retry_after_is_the_moment_and_not_a_moment_less(accounts: Accounts) -> None:
    caller = principal(rate=7, burst=4)
    await admit(accounts.admission, caller, pictures=4)
    with pytest.raises(RateLimited) as caught:
        await admit(accounts.admission, caller, pictures=3)
    wait_seconds = caught.value.retry_after_seconds
    assert wait_seconds is not None
    assert 0 <= wait_seconds - 3 * 60 / 7 < 1e-6

    accounts.advance(wait_seconds - 1e-6)
    with pytest.raises(RateLimited):
        await admit(accounts.admission, caller, pictures=3)
    accounts.advance(1e-6)

    await admit(accounts.admission, caller, pictures=3)


STEPS = st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(1, 12)), max_size=40)


@given(rate=st.integers(1, 5000), burst=st.integers(1, 300), steps=STEPS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_level_follows_the_formula(
    new_accounts: NewAccounts, rate: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    """Against `level = min(burst, level + waited * rate / 60)` in exact fractions."""

    async def run() -> None:
        async with new_accounts() as accounts:
            caller, level = principal(rate=rate, burst=burst), Fraction(burst)
            for wait_us, wanted in steps:
                pictures = min(wanted, burst)
                accounts.advance(wait_us / 1_000_000)
                level = min(Fraction(burst), level + Fraction(wait_us * rate, 60_000_000))
                if level >= pictures:
                    await admit(accounts.admission, caller, pictures=pictures)
                    level -= pictures
                else:
                    with pytest.raises(RateLimited) as caught:
                        await admit(accounts.admission, caller, pictures=pictures)
                    exact_seconds = float((pictures - level) * 60 / rate)
                    assert caught.value.retry_after_seconds == pytest.approx(exact_seconds, abs=1.1e-6)

    asyncio.run(run())


async def test_a_month_has_its_quota_and_not_a_picture_more(accounts: Accounts) -> None:
    caller = principal(burst=50, rate=6000, quota=120)
    counts = []
    for _ in range(5):
        counts.append(await admitted(accounts.admission, caller, requests=60))
        accounts.advance(1)

    assert counts == [50, 50, 20, 0, 0]


async def test_a_batch_beyond_the_quota_takes_nothing(accounts: Accounts) -> None:
    caller = principal(burst=10, quota=5)
    await admit(accounts.admission, caller, pictures=3)
    with pytest.raises(QuotaExceeded, match="2 of this month's 5"):
        await admit(accounts.admission, caller, pictures=3)

    await admit(accounts.admission, caller, pictures=2)


@pytest.mark.parametrize(
    ("start", "next_month"),
    [
        (END_OF_JANUARY, FEBRUARY),
        (datetime(2028, 2, 29, 12, 0, 0, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),  # leap day
        (datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
async def test_the_quota_returns_with_the_month_in_utc(
    new_accounts: NewAccounts, start: datetime, next_month: datetime
) -> None:
    async with new_accounts(start) as accounts:
        caller = principal(quota=1)
        first = await admit(accounts.admission, caller)
        await settle(accounts, first)
        with pytest.raises(QuotaExceeded) as caught:
            await admit(accounts.admission, caller)
        assert caught.value.retry_after_seconds == (next_month - start).total_seconds()

        accounts.advance(caught.value.retry_after_seconds)

        later = await admit(accounts.admission, caller)
        assert [first.admitted_at, later.admitted_at] == [start, next_month]


@given(
    moment=st.datetimes(
        datetime(2000, 1, 1), datetime(2099, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC)
    )
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_moment_is_charged_to_its_month(new_accounts: NewAccounts, moment: datetime) -> None:
    async def run() -> None:
        async with new_accounts(moment) as accounts:
            await admit(accounts.admission, principal(), pictures=3)

            assert accounts.charged("key_a", Month.of(moment)) == 3

    asyncio.run(run())


async def test_a_clock_set_back_over_midnight_grants_nothing(new_accounts: NewAccounts) -> None:
    async with new_accounts(END_OF_JANUARY) as accounts:
        caller = principal(quota=1)
        await admit(accounts.admission, caller)
        accounts.step_clock(FEBRUARY)
        await admit(accounts.admission, caller)

        accounts.step_clock(END_OF_JANUARY)

        with pytest.raises(QuotaExceeded):
            await admit(accounts.admission, caller)


async def test_a_second_that_is_counted_twice_refills_once(new_accounts: NewAccounts) -> None:
    """A leap second, as clocks count it that know of none; at the end of a month, as they come."""
    begin = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    async with new_accounts(begin) as accounts:
        caller = principal(rate=60, burst=2, quota=4)
        await admit(accounts.admission, caller, pictures=2)
        accounts.advance(1 - 1e-6)

        accounts.step_clock(begin)

        with pytest.raises(RateLimited):
            await admit(accounts.admission, caller, pictures=2)
        accounts.advance(1)  # midnight, and another month's quota
        assert await admitted(accounts.admission, caller, requests=5) == 1
        assert accounts.charged("key_a", Month(2026, 12)) == 2
        assert accounts.charged("key_a", Month(2027, 1)) == 1


@pytest.mark.parametrize("back", [timedelta(seconds=1), timedelta(hours=1), timedelta(days=40)])
async def test_a_clock_that_steps_back_neither_refills_nor_loses(
    new_accounts: NewAccounts, back: timedelta
) -> None:
    start = datetime(2026, 6, 15, tzinfo=UTC)
    async with new_accounts(start) as accounts:
        caller = principal(rate=60, burst=10)
        await admit(accounts.admission, caller, pictures=10)

        accounts.step_clock(start - back)

        with pytest.raises(RateLimited):
            await admit(accounts.admission, caller)
        accounts.advance(3)
        assert await admitted(accounts.admission, caller, requests=10) == 3


async def test_a_jump_of_the_gateways_clock_refills_nothing(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = principal(burst=1, quota=1)
    await admit(accounts.admission, caller)
    later = time.time() + timedelta(days=40).total_seconds()

    monkeypatch.setattr(time, "time", lambda: later)

    with pytest.raises(QuotaExceeded):
        await admit(accounts.admission, caller)
    with pytest.raises(RateLimited):
        await admit(accounts.admission, principal(burst=1))


async def test_giving_back_twice_is_giving_back_once(accounts: Accounts) -> None:
    caller = principal(burst=10, quota=10, at_once=2)
    reservation = await admit(accounts.admission, caller, pictures=4)
    await admit(accounts.admission, caller, pictures=6)

    await asyncio.gather(*(accounts.admission.give_back(reservation) for _ in range(20)))

    assert (await accounts.admission.limits(caller)).concurrent == 1
    assert await admitted(accounts.admission, principal(burst=10, quota=10), requests=20) == 4


async def test_giving_back_never_overfills(accounts: Accounts) -> None:
    caller = principal(burst=10)
    reservation = await admit(accounts.admission, caller, pictures=10, lease_seconds=7200)
    accounts.advance(3600)

    await accounts.admission.give_back(reservation)

    assert await admitted(accounts.admission, caller, requests=50) == 10


async def test_giving_back_what_was_never_taken_gives_nothing(accounts: Accounts) -> None:
    caller = principal(burst=3)
    assert await admitted(accounts.admission, caller, requests=5) == 3
    state = LimitState(0, 0.0, None, 0.0, None)

    await accounts.admission.give_back(Reservation("never asked", caller.key_id, 3, accounts.now, state))

    assert await admitted(accounts.admission, caller, requests=5) == 0


async def test_a_picture_given_back_after_the_month_returns_to_its_own_month(
    new_accounts: NewAccounts,
) -> None:
    async with new_accounts(END_OF_JANUARY) as accounts:
        caller = principal(quota=2)
        january = await admit(accounts.admission, caller, pictures=2)
        accounts.advance(1)
        await admit(accounts.admission, caller, pictures=2)

        await accounts.admission.give_back(january)

        with pytest.raises(QuotaExceeded):
            await admit(accounts.admission, caller)
        assert accounts.charged("key_a", Month(2026, 1)) == 0
        assert accounts.charged("key_a", Month(2026, 2)) == 2


async def test_a_request_that_was_given_back_may_be_admitted_again(accounts: Accounts) -> None:
    caller = principal(burst=1, quota=1, at_once=1)
    for _ in range(3):  # as often as its model's version is exchanged under its hands
        reservation = await admit(accounts.admission, caller, "same")
        await accounts.admission.give_back(reservation)

    await admit(accounts.admission, caller, "same")


@pytest.mark.parametrize("at_once", [1, 5], ids=["in its own way", "room enough"])
async def test_one_request_id_used_twice_takes_its_tokens_twice_and_one_place(
    accounts: Accounts, at_once: int
) -> None:
    caller = principal(burst=2, quota=10, at_once=at_once)
    await admit(accounts.admission, caller, "same")
    again = await admit(accounts.admission, caller, "same")

    assert (again.limits.tokens, again.limits.quota, again.limits.concurrent) == (0, 9, at_once - 1)


async def test_a_key_that_changes_its_tier_keeps_what_it_had_as_far_as_it_fits(accounts: Accounts) -> None:
    await admit(accounts.admission, principal(burst=100), pictures=10)

    assert await admitted(accounts.admission, principal(burst=20), requests=50) == 20
    assert await admitted(accounts.admission, principal(burst=100), requests=50) == 0


async def test_two_tiers_on_one_key_fill_one_bucket_and_count_to_one_quota(accounts: Accounts) -> None:
    """While a key's tier changes, gateways that know and gateways that do not ask side by side."""
    small, large = principal(rate=60, burst=10, quota=30), principal(rate=600, burst=50, quota=60)
    first = [await admitted(accounts.admission, small, requests=10)]
    first.append(await admitted(accounts.admission, large, requests=50))
    counts = []
    for _ in range(4):
        accounts.advance(1)
        counts.append(await admitted(accounts.admission, large, requests=50))
        accounts.advance(1)
        counts.append(await admitted(accounts.admission, small, requests=50))

    assert first == [10, 0]
    # Time refills by the terms of whom it lets through next, who is only the larger once 30 are used up.
    assert counts == [10, 1, 10, 0, 20, 0, 9, 0]


@pytest.mark.parametrize("end", ["settle", "give back"])
async def test_a_place_is_free_again_when_a_request_ends(accounts: Accounts, end: str) -> None:
    caller = principal(at_once=2)
    reservation = await admit(accounts.admission, caller)
    await admit(accounts.admission, caller)
    with pytest.raises(TooManyAtOnce) as caught:
        await admit(accounts.admission, caller)
    assert caught.value.retry_after_seconds == 1

    if end == "settle":
        await settle(accounts, reservation)
    else:
        await accounts.admission.give_back(reservation)

    assert await admitted(accounts.admission, caller, requests=5) == 1


@pytest.mark.parametrize("caller", [principal(quota=8), principal(at_once=1)], ids=["quota", "concurrency"])
async def test_what_nobody_ends_lapses_when_its_lease_does_and_not_before(
    accounts: Accounts, caller: Principal
) -> None:
    await admit(accounts.admission, caller, pictures=8)

    accounts.advance(LEASE_SECONDS - 1e-6)
    assert await admitted(accounts.admission, caller, requests=5) == 0
    accounts.advance(1e-6)
    await admit(accounts.admission, caller)

    assert accounts.charged(caller.key_id, Month.of(accounts.now)) == 1


async def test_what_has_lapsed_leaves_the_count_although_it_is_in_nobodys_way(accounts: Accounts) -> None:
    caller = principal(rate=6000)
    await admit(accounts.admission, caller, pictures=8)
    accounts.advance(LEASE_SECONDS + 10)

    await admit(accounts.admission, caller)

    assert accounts.charged(caller.key_id, Month.of(accounts.now)) == 1


async def test_tokens_of_what_has_lapsed_stay_spent(accounts: Accounts) -> None:
    caller = principal(rate=1, burst=10)
    reservation = await admit(accounts.admission, caller, pictures=10)
    accounts.advance(LEASE_SECONDS)

    await accounts.admission.give_back(reservation)

    assert (await accounts.admission.limits(caller)).tokens == 0


async def test_a_lease_outlives_a_clock_that_steps_back_by_itself_once_at_the_most(
    accounts: Accounts,
) -> None:
    caller = principal(at_once=1)
    await admit(accounts.admission, caller)

    accounts.step_clock(accounts.now - timedelta(days=1))
    accounts.advance(LEASE_SECONDS)

    await admit(accounts.admission, caller)


async def test_limits_say_what_is_left(new_accounts: NewAccounts) -> None:
    async with new_accounts(END_OF_JANUARY) as accounts:
        caller = principal(rate=60, burst=10, quota=100, at_once=5)
        untouched = await accounts.admission.limits(caller)
        reservation = await admit(accounts.admission, caller, pictures=4)
        accounts.advance(0.25)
        later = await accounts.admission.limits(caller)

    assert untouched == LimitState(10, 0.0, 100, 1.0, 5)
    assert reservation.limits == LimitState(6, 1.0, 96, 1.0, 4)
    assert later == LimitState(6, 0.75, 96, 0.75, 4)


@pytest.mark.parametrize(
    ("caller", "refusal"),
    [
        (principal(burst=10, quota=100, at_once=2), RateLimited),
        (principal(burst=100, quota=10, at_once=2), QuotaExceeded),
        (principal(burst=100, quota=100, at_once=1), TooManyAtOnce),
    ],
)
async def test_a_refusal_says_what_is_left(
    accounts: Accounts, caller: Principal, refusal: type[LimitReached]
) -> None:
    await admit(accounts.admission, caller, pictures=7)
    with pytest.raises(refusal) as caught:
        await admit(accounts.admission, caller, pictures=4)

    assert caught.value.limits == await accounts.admission.limits(caller)


async def test_where_there_is_no_limit_none_is_said(accounts: Accounts) -> None:
    reservation = await admit(accounts.admission, principal())

    assert (reservation.limits.quota, reservation.limits.concurrent) == (None, None)


async def test_a_tier_that_shrinks_leaves_nothing_rather_than_less(accounts: Accounts) -> None:
    await admit(accounts.admission, principal(quota=100, at_once=5), pictures=4)

    shrunk = await accounts.admission.limits(principal(burst=3, quota=2, at_once=1))

    assert (shrunk.tokens, shrunk.quota, shrunk.concurrent) == (3, 0, 0)
