from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.memory.clock import ManualClock
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal, Tier
from serving.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeyUnsure,
    InvalidRequest,
    LimitReached,
    QuotaExceeded,
    RateLimited,
    TooManyAtOnce,
)
from serving.ports import Reservation
from tests.support.tiers import make_tier
from tests.support.usage_events import make_event

KEY = "key_1"
ANSWER = RenderedAnswer(b"{}", {})
NOVEMBER = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC)


class Charged:
    """Pictures that the shared buckets are to be charged with."""

    def __init__(self) -> None:
        self.pictures: dict[str, int] = {}

    def add(self, key_id: str, tier: Tier, pictures: int) -> None:
        assert tier.max_concurrent_requests != 1  # the key's own tier, not a share of it
        self.pictures[key_id] = self.pictures.get(key_id, 0) + pictures

    def take_back(self, key_id: str, pictures: int) -> None:
        self.pictures[key_id] -= pictures


class World:
    def __init__(self) -> None:
        self.clock = ManualClock(NOVEMBER)
        self.gateways = 1
        self.charged = Charged()
        self.ledger: int | None = None
        self.asked_ledger = 0
        self.accounts = LocalAccounts(
            self.clock,
            gateways=lambda: self.gateways,
            admitted_at=self.clock.now,
            charges=self.charged,
            used_this_month=self.used_this_month,
        )
        self._number = 0

    async def used_this_month(self, key_id: str) -> int | None:
        assert key_id == KEY
        self.asked_ledger += 1
        return self.ledger

    async def admit(
        self,
        principal: Principal,
        *,
        pictures: int = 1,
        request_id: str | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation:
        self._number += 1
        admitted = await self.accounts.admit(
            principal,
            request_id=request_id or f"req_{self._number}",
            pictures=pictures,
            lease_seconds=10,
            idempotency=idempotency,
        )
        assert isinstance(admitted, Reservation)
        return admitted

    async def admitted(self, principal: Principal, *, requests: int = 100, pictures: int = 1) -> int:
        """Of so many requests that come at once."""
        count = 0
        for _ in range(requests):
            try:
                await self.admit(principal, pictures=pictures)
            except LimitReached:
                continue
            count += 1
        return count

    def redis_left(self, *, tokens: int, quota: int | None = None, by: Principal | None = None) -> None:
        """What it said of the last request before it went."""
        month_ends_seconds = (Month.of(self.clock.now()).end - self.clock.now()).total_seconds()
        self.accounts.note(
            by or principal(quota=quota), LimitState(tokens, 0.0, quota, month_ends_seconds, None)
        )


@pytest.fixture
def world() -> World:
    return World()


def principal(
    *, rate: int = 60, burst: int = 12, quota: int | None = None, at_once: int | None = None
) -> Principal:
    tier = replace(make_tier(rate=rate, burst=burst, monthly_quota=quota), max_concurrent_requests=at_once)
    return Principal(KEY, "ada", tier, None)


@pytest.mark.parametrize(
    ("gateways", "expected"),
    [(1, 12), (2, 6), (3, 4), (5, 2), (12, 1), (13, 1)],
)
async def test_a_gateway_admits_its_share_of_a_burst(world: World, gateways: int, expected: int) -> None:
    world.gateways = gateways
    assert await world.admitted(principal()) == expected
    assert world.charged.pictures == {KEY: expected}


async def test_a_gateway_admits_its_share_of_the_rate(world: World) -> None:
    world.gateways = 4
    await world.admitted(principal())
    world.clock.advance(8)  # eight tokens
    assert await world.admitted(principal()) == 2


async def test_it_goes_on_from_the_level_that_redis_left_and_what_has_refilled_since(world: World) -> None:
    world.redis_left(tokens=3)
    world.clock.advance(2.5)
    assert await world.admitted(principal()) == 5
    world.clock.advance(3)
    assert await world.admitted(principal()) == 3  # and is not given that level again


async def test_what_redis_left_is_never_more_than_a_burst(world: World) -> None:
    world.redis_left(tokens=3)
    world.clock.advance(3600)
    assert await world.admitted(principal()) == 12


async def test_after_a_return_it_goes_on_from_what_redis_said_last(world: World) -> None:
    world.redis_left(tokens=3)
    assert await world.admitted(principal()) == 3
    world.redis_left(tokens=7)
    assert (await world.accounts.limits(principal())).tokens == 7
    assert await world.admitted(principal()) == 7


async def test_the_quota_that_was_left_is_all_there_is(world: World) -> None:
    caller = principal(quota=100, burst=50)
    world.redis_left(tokens=50, quota=4, by=caller)
    assert await world.admitted(caller) == 4
    with pytest.raises(QuotaExceeded):
        await world.admit(caller)
    assert (await world.accounts.limits(caller)).quota == 0


async def test_a_quota_of_last_month_says_nothing_of_this_one(world: World) -> None:
    caller = principal(quota=100, burst=50)
    world.redis_left(tokens=50, quota=4, by=caller)
    world.clock.advance(10)
    assert world.clock.now() == datetime(2026, 12, 1, tzinfo=UTC)
    assert await world.admitted(caller) == 50


@pytest.mark.parametrize(("gateways", "expected"), [(1, 5), (2, 3), (4, 2), (9, 1)])
async def test_requests_at_a_time_are_shared_and_rounded_up(
    world: World, gateways: int, expected: int
) -> None:
    world.gateways = gateways
    caller = principal(burst=1000, at_once=5)
    assert await world.admitted(caller) == expected
    with pytest.raises(TooManyAtOnce):
        await world.admit(caller)


async def test_what_is_given_back_is_charged_to_nobody_and_can_be_taken_again(world: World) -> None:
    caller = principal(at_once=2)
    first, second = await world.admit(caller, pictures=5), await world.admit(caller, pictures=7)
    for _ in range(2):
        was_ours = await world.accounts.give_back(first)
    assert not was_ours  # the second time
    assert world.charged.pictures == {KEY: 7}
    await world.admit(caller, pictures=5)
    with pytest.raises(RateLimited):
        await world.admit(caller)
    assert await world.accounts.give_back(second)


async def test_what_is_settled_ends_and_its_unusable_pictures_go_back(world: World) -> None:
    caller = principal(at_once=2)
    reservation = await world.admit(caller, pictures=10)
    world.accounts.settle(make_event(reservation.request_id, pictures=4), reservation, ANSWER)
    assert world.charged.pictures == {KEY: 4}
    assert not await world.accounts.give_back(reservation)
    await world.admit(caller, pictures=8)


async def test_what_redis_reserved_is_not_ours_to_give_back_nor_to_charge(world: World) -> None:
    limits = LimitState(5, 0.0, None, 1.0, None)
    reservation = Reservation("req_0", KEY, 3, world.clock.now(), limits)
    assert not await world.accounts.give_back(reservation)
    world.accounts.settle(make_event("req_0", pictures=1), reservation, ANSWER)
    assert world.charged.pictures == {}
    assert await world.admitted(principal()) == 12


def by_redis(world: World, idempotency: IdempotencyKey) -> Reservation:
    left = LimitState(5, 0.0, None, 1.0, None)
    return Reservation("req_0", KEY, 1, world.clock.now(), left, idempotency)


async def test_a_repeated_request_gets_its_answer_or_has_to_wait_for_it(world: World) -> None:
    again = IdempotencyKey("again", "a" * 64)
    reservation = by_redis(world, again)
    world.accounts.claim(reservation, 10)
    with pytest.raises(IdempotencyKeyInUse):
        await world.admit(principal(), idempotency=again)
    with pytest.raises(IdempotencyKeyReused):
        world.accounts.answered(KEY, replace(again, fingerprint="b" * 64))
    world.accounts.settle(make_event(reservation.request_id), reservation, ANSWER)
    assert world.accounts.answered(KEY, again) == replace(ANSWER, replayed=True)
    assert world.accounts.answered("key_2", again) is None


async def test_a_request_that_fails_leaves_its_key_free(world: World) -> None:
    again = IdempotencyKey("again", "a" * 64)
    reservation = by_redis(world, again)
    world.accounts.claim(reservation, 10)
    await world.accounts.give_back(reservation)
    assert world.accounts.answered(KEY, again) is None


async def test_a_key_that_another_gateway_may_have_billed_is_not_billed_here(world: World) -> None:
    with pytest.raises(IdempotencyKeyUnsure):
        await world.admit(principal(), idempotency=IdempotencyKey("unheard of", "a" * 64))
    assert world.charged.pictures == {}
    assert await world.admitted(principal()) == 12


async def test_more_than_a_burst_is_still_no_request(world: World) -> None:
    with pytest.raises(InvalidRequest):
        await world.admit(principal(), pictures=13)


async def test_lists_that_cost_more_than_a_burst_stay_within_the_share_in_the_long_run(world: World) -> None:
    world.gateways = 4
    admitted = 0
    for _ in range(600):  # ten minutes
        admitted += await world.admitted(principal(), requests=1, pictures=12) * 12
        world.clock.advance(1)
    assert admitted <= 12 + 600 / 4
    assert admitted > 600 / 4 - 12


async def test_what_is_owed_for_a_long_list_is_said(world: World) -> None:
    world.gateways = 4
    reservation = await world.admit(principal(), pictures=12)  # 48 tokens of a bucket of 12
    assert (reservation.limits.tokens, reservation.limits.next_token_seconds) == (0, 40)
    with pytest.raises(RateLimited) as refused:
        await world.admit(principal())
    assert refused.value.retry_after_seconds == 40


async def test_a_wall_clock_that_jumps_moves_no_limit(world: World) -> None:
    world.redis_left(tokens=3)
    world.clock.set_wall_clock(NOVEMBER + timedelta(days=1))
    assert await world.admitted(principal()) == 3


@pytest.mark.parametrize(("gateways", "expected"), [(1, 10), (2, 5), (3, 4), (11, 1)])
async def test_what_is_left_of_the_quota_is_shared_and_rounded_up(
    world: World, gateways: int, expected: int
) -> None:
    world.gateways = gateways
    caller = principal(rate=60_000, burst=1000, quota=100)
    world.redis_left(tokens=1000, quota=10, by=caller)
    assert await world.admitted(caller) == expected
    with pytest.raises(QuotaExceeded, match=r"^0 of this month's 100 pictures are left"):
        await world.admit(caller)


async def test_a_key_that_was_refused_everything_stays_refused(world: World) -> None:
    caller = principal(quota=100)
    world.redis_left(tokens=12, quota=0, by=caller)
    assert await world.admitted(caller) == 0
    assert world.asked_ledger == 0


@pytest.mark.parametrize(
    ("before", "left", "now", "expected"),
    [
        (100, 10, 40, 0),  # of 90 used
        (100, 10, 95, 5),
        (100, 10, 110, 20),
        (100, 10, None, 50),  # as many as come
        (None, None, 100, 25),  # nobody counted here, and the ledger did
    ],
)
async def test_another_tier_meanwhile_does_not_change_what_was_used(
    world: World, before: int | None, left: int | None, now: int | None, expected: int
) -> None:
    world.ledger = 75
    world.redis_left(tokens=1000, quota=left, by=principal(rate=60_000, burst=1000, quota=before))
    assert await world.admitted(principal(rate=60_000, burst=1000, quota=now), requests=50) == expected


async def test_a_tier_that_changes_in_the_midst_of_it_counts_what_was_admitted_here_too(world: World) -> None:
    small, large = (principal(rate=60_000, burst=1000, quota=quota) for quota in (100, 120))
    world.gateways = 2
    world.redis_left(tokens=1000, quota=10, by=small)
    assert await world.admitted(small) == 5
    assert await world.admitted(large) == 10  # of its share of 30


async def test_what_a_key_nobody_told_of_has_used_is_asked_of_the_ledger_once(world: World) -> None:
    world.ledger = 97
    caller = principal(quota=100)
    assert (await world.accounts.limits(caller)).quota == 3
    assert await world.admitted(caller) == 3
    assert world.asked_ledger == 1


async def test_a_key_without_a_quota_is_not_asked_for(world: World) -> None:
    await world.admit(principal())
    assert world.asked_ledger == 0


async def test_a_ledger_that_answers_late_counts_no_picture_twice(world: World) -> None:
    caller = principal(rate=60_000, burst=1000, quota=100)
    assert await world.admitted(caller, requests=10) == 10
    world.ledger = 90
    assert await world.admitted(caller) == 10
    assert world.asked_ledger == 11


async def test_of_a_new_month_the_ledger_tells(world: World) -> None:
    caller = principal(quota=100)
    world.redis_left(tokens=12, quota=0, by=caller)
    world.clock.advance(10)
    world.ledger = 95
    assert await world.admitted(caller) == 5


async def test_midnight_that_has_passed_here_and_not_there_takes_no_month_for_another(world: World) -> None:
    caller = principal(quota=100)
    world.clock.advance(10)  # December, here
    world.accounts.note(caller, LimitState(12, 0.0, 0, 0.001, None))
    assert await world.admitted(caller, requests=3) == 3


async def test_what_redis_admitted_has_its_key_here_until_it_ends(world: World) -> None:
    again = IdempotencyKey("again", "a" * 64)
    first, second = by_redis(world, again), replace(by_redis(world, again), request_id="req_9")
    world.accounts.claim(first, 10)
    with pytest.raises(IdempotencyKeyInUse):
        await world.admit(principal(), idempotency=again)
    await world.accounts.give_back(first)
    world.accounts.claim(second, 10)
    with pytest.raises(IdempotencyKeyInUse):
        world.accounts.claim(first, 10)
    with pytest.raises(IdempotencyKeyInUse):
        world.accounts.hold(first)
    world.clock.advance(9.9)
    world.accounts.hold(second)  # and has it until it is journaled
    world.clock.advance(0.2)
    with pytest.raises(IdempotencyKeyInUse):
        await world.admit(principal(), idempotency=again)


async def test_holding_a_key_does_not_shorten_its_claim(world: World) -> None:
    again = IdempotencyKey("again", "a" * 64)
    first = Reservation("req_0", KEY, 1, world.clock.now(), LimitState(5, 0.0, None, 1.0, None), again)
    world.accounts.claim(first, 1000)
    world.accounts.hold(first)
    world.clock.advance(999)
    with pytest.raises(IdempotencyKeyInUse):
        world.accounts.answered(KEY, again)
