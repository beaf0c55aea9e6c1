"""Every form of `Admission` lets through what the tier says, to the picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.domain.tenant import Principal, Tier
from serving.errors import InvalidRequest, QuotaExceeded, RateLimited
from serving.ports import Admission, Reservation

NewAdmission = Callable[[ManualClock], Admission]


@pytest.fixture(params=[InMemoryAdmission], ids=["memory"])
def new_admission(request: pytest.FixtureRequest) -> NewAdmission:
    made: NewAdmission = request.param
    return made


@pytest.fixture
def admission(new_admission: NewAdmission, clock: ManualClock) -> Admission:
    return new_admission(clock)


def principal(
    *, key_id: str = "key_a", rate: int = 60, burst: int = 10, quota: int | None = None
) -> Principal:
    tier = Tier("test", rate, burst, quota, max_pictures_per_request=burst, gpu=False)
    return Principal(key_id, "ada", tier, models=None)


async def admitted(admission: Admission, caller: Principal, *, requests: int, pictures: int = 1) -> int:
    """How many of `requests` at once are let through; the rest must be refused for their rate or quota."""
    answers = await asyncio.gather(
        *(
            admission.admit(caller, request_id=f"{caller.key_id}-{number}-{id(caller)}", pictures=pictures)
            for number in range(requests)
        ),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if not isinstance(answer, Reservation)]
    assert {type(answer) for answer in refused} <= {RateLimited, QuotaExceeded}
    return requests - len(refused)


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
    admission: Admission, burst: int, pictures: int, expected: int
) -> None:
    caller = principal(burst=burst)

    assert await admitted(admission, caller, requests=200, pictures=pictures) == expected


async def test_keys_do_not_share_a_bucket(admission: Admission) -> None:
    first, second = principal(key_id="key_a", burst=5), principal(key_id="key_b", burst=7)

    of_first, of_second = await asyncio.gather(
        admitted(admission, first, requests=100), admitted(admission, second, requests=100)
    )

    assert (of_first, of_second) == (5, 7)


async def test_a_refused_batch_takes_nothing(admission: Admission) -> None:
    caller = principal(burst=10)
    await admission.admit(caller, request_id="first", pictures=8)
    with pytest.raises(RateLimited):
        await admission.admit(caller, request_id="second", pictures=3)

    await admission.admit(caller, request_id="third", pictures=2)


@pytest.mark.parametrize("pictures", [11, 1000])
async def test_more_than_the_burst_is_invalid_however_long_one_waits(
    admission: Admission, pictures: int
) -> None:
    with pytest.raises(InvalidRequest, match="burst of 10"):
        await admission.admit(principal(burst=10), request_id="big", pictures=pictures)


@pytest.mark.parametrize("pictures", [0, -1])
async def test_a_request_without_pictures_is_a_bug(admission: Admission, pictures: int) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        await admission.admit(principal(), request_id="none", pictures=pictures)


async def test_retry_after_is_the_moment_and_not_a_moment_less(
    admission: Admission, clock: ManualClock
) -> None:
    caller = principal(rate=7, burst=4)
    await admission.admit(caller, request_id="first", pictures=4)
    with pytest.raises(RateLimited) as caught:
        await admission.admit(caller, request_id="second", pictures=3)
    wait_seconds = caught.value.retry_after_seconds
    assert wait_seconds is not None
    assert 0 <= wait_seconds - 3 * 60 / 7 < 1e-6

    clock.advance(wait_seconds - 1e-6)
    with pytest.raises(RateLimited):
        await admission.admit(caller, request_id="third", pictures=3)
    clock.advance(1e-6)

    await admission.admit(caller, request_id="fourth", pictures=3)


STEPS = st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(1, 12)), max_size=40)


@given(rate=st.integers(1, 5000), burst=st.integers(1, 300), steps=STEPS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_level_follows_the_formula(
    new_admission: NewAdmission, rate: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    """Against `level = min(burst, level + waited * rate / 60)` in exact fractions."""

    async def run() -> None:
        clock = ManualClock()
        admission, caller = new_admission(clock), principal(rate=rate, burst=burst)
        level, now_us = Fraction(burst), 0
        for number, (wait_us, wanted) in enumerate(steps):
            pictures = min(wanted, burst)
            now_us += wait_us
            clock.advance(now_us / 1_000_000 - clock.monotonic())
            level = min(Fraction(burst), level + Fraction(wait_us * rate, 60_000_000))
            if level >= pictures:
                await admission.admit(caller, request_id=str(number), pictures=pictures)
                level -= pictures
            else:
                with pytest.raises(RateLimited) as caught:
                    await admission.admit(caller, request_id=str(number), pictures=pictures)
                exact_seconds = float((pictures - level) * 60 / rate)
                assert caught.value.retry_after_seconds == pytest.approx(exact_seconds, abs=1.1e-6)

    asyncio.run(run())


async def test_a_month_has_its_quota_and_not_a_picture_more(admission: Admission, clock: ManualClock) -> None:
    caller = principal(burst=50, rate=6000, quota=120)
    counts = []
    for _ in range(5):
        counts.append(await admitted(admission, caller, requests=60))
        clock.advance(60)

    assert counts == [50, 50, 20, 0, 0]


async def test_a_batch_beyond_the_quota_takes_nothing(admission: Admission) -> None:
    caller = principal(burst=10, quota=5)
    await admission.admit(caller, request_id="first", pictures=3)
    with pytest.raises(QuotaExceeded, match="2 of this month's 5"):
        await admission.admit(caller, request_id="second", pictures=3)

    await admission.admit(caller, request_id="third", pictures=2)


async def test_a_quota_of_nothing_admits_nothing(admission: Admission) -> None:
    with pytest.raises(QuotaExceeded):
        await admission.admit(principal(quota=0), request_id="first", pictures=1)


@pytest.mark.parametrize(
    ("start", "next_month"),
    [
        (datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, 12, 0, 0, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),  # leap day
        (datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
async def test_the_quota_returns_with_the_month_in_utc(
    new_admission: NewAdmission, start: datetime, next_month: datetime
) -> None:
    clock = ManualClock(start)
    admission, caller = new_admission(clock), principal(quota=1)
    await admission.admit(caller, request_id="first", pictures=1)
    with pytest.raises(QuotaExceeded) as caught:
        await admission.admit(caller, request_id="second", pictures=1)
    assert caught.value.retry_after_seconds == (next_month - start).total_seconds()

    clock.advance(caught.value.retry_after_seconds)

    await admission.admit(caller, request_id="third", pictures=1)


async def test_a_clock_set_back_over_midnight_grants_nothing(
    new_admission: NewAdmission, clock: ManualClock
) -> None:
    clock.set_wall_clock(datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC))
    admission, caller = new_admission(clock), principal(quota=1)
    await admission.admit(caller, request_id="january", pictures=1)
    clock.set_wall_clock(datetime(2026, 2, 1, tzinfo=UTC))
    await admission.admit(caller, request_id="february", pictures=1)

    clock.set_wall_clock(datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC))

    with pytest.raises(QuotaExceeded):
        await admission.admit(caller, request_id="january again", pictures=1)


async def test_a_jump_of_the_wall_clock_refills_nothing(admission: Admission, clock: ManualClock) -> None:
    caller = principal(burst=1)
    await admission.admit(caller, request_id="first", pictures=1)

    clock.set_wall_clock(clock.now() + timedelta(days=1))

    with pytest.raises(RateLimited):
        await admission.admit(caller, request_id="second", pictures=1)


async def test_giving_back_twice_is_giving_back_once(admission: Admission) -> None:
    caller = principal(burst=10, quota=10)
    reservation = await admission.admit(caller, request_id="failed", pictures=4)
    await admission.admit(caller, request_id="good", pictures=6)

    await asyncio.gather(*(admission.give_back(reservation) for _ in range(20)))

    assert await admitted(admission, caller, requests=20) == 4


async def test_giving_back_never_overfills(admission: Admission, clock: ManualClock) -> None:
    caller = principal(burst=10)
    reservation = await admission.admit(caller, request_id="failed", pictures=10)
    clock.advance(3600)

    await admission.give_back(reservation)

    assert await admitted(admission, caller, requests=50) == 10


async def test_giving_back_what_was_never_taken_gives_nothing(admission: Admission) -> None:
    caller = principal(burst=3)
    assert await admitted(admission, caller, requests=5) == 3

    await admission.give_back(Reservation("never asked", caller.key_id, 3))

    assert await admitted(admission, principal(burst=3), requests=5) == 0


async def test_a_picture_given_back_after_the_month_returns_to_its_own_month(
    new_admission: NewAdmission,
) -> None:
    clock = ManualClock(datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC))
    admission, caller = new_admission(clock), principal(quota=2)
    january = await admission.admit(caller, request_id="january", pictures=2)
    clock.advance(1)
    await admission.admit(caller, request_id="february", pictures=2)

    await admission.give_back(january)

    with pytest.raises(QuotaExceeded):
        await admission.admit(caller, request_id="more", pictures=1)


async def test_one_request_id_used_twice_is_charged_twice(admission: Admission) -> None:
    caller = principal(burst=2)
    await admission.admit(caller, request_id="same", pictures=1)
    await admission.admit(caller, request_id="same", pictures=1)

    with pytest.raises(RateLimited):
        await admission.admit(caller, request_id="same", pictures=1)


async def test_a_key_that_changes_its_tier_keeps_what_it_had_as_far_as_it_fits(admission: Admission) -> None:
    await admission.admit(principal(burst=100), request_id="first", pictures=10)

    assert await admitted(admission, principal(burst=20), requests=50) == 20
    assert await admitted(admission, principal(burst=100), requests=50) == 0
