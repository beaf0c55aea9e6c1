from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.fallback import FallbackAdmission, FallbackMeter
from serving.adapters.journal import Journal
from serving.adapters.journal_record import JournalRecord
from serving.adapters.left_with_redis import AT_A_TIME
from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.adapters.redis.keyspace import PARTITIONS
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.pulse import Pulse
from serving.adapters.redis.retained import RetainedEvents
from serving.adapters.redis.trouble import unavailable
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import (
    AccountsTrouble,
    AccountsUnavailable,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeyUnsure,
    QuotaExceeded,
    RateLimited,
)
from serving.metrics import Metrics
from serving.ports import Reservation
from tests.support.tiers import make_tier
from tests.support.usage_events import make_event

KEY = "key_1"
CALLER = Principal(KEY, "ada", make_tier(rate=60, burst=10), None)
ANSWER = RenderedAnswer(b"{}", {})
AGAIN = IdempotencyKey("again", "a" * 64)


class Redis(InMemoryAdmission):
    """Admits and appends until there is trouble, and writes down what it was asked.

    breaks_after: whether trouble comes with the answer of the next call, and not instead of it.
    """

    def __init__(self, clock: ManualClock, watch: Watch) -> None:
        super().__init__(clock)
        self.trouble: AccountsUnavailable | None = None
        self.is_superseded = False
        self.asked: list[str] = []
        self.appended: list[tuple[str, bool]] = []
        self.breaks_after = False
        self.refuses: set[str] = set()
        self.given_back: list[str] = []
        self.breaks_at_give_back: int | None = None
        self._watch = watch

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        self._ask("admit")
        admitted = await super().admit(
            principal,
            request_id=request_id,
            pictures=pictures,
            lease_seconds=lease_seconds,
            idempotency=idempotency,
        )
        if self.breaks_after:
            self._watch.failed(unavailable("slow"))
        return admitted

    async def answered(self, principal: Principal, idempotency: IdempotencyKey) -> RenderedAnswer | None:
        self._ask("answered")
        return await super().answered(principal, idempotency)

    async def give_back(self, reservation: Reservation) -> None:
        self.asked.append("give back")
        self.given_back.append(reservation.request_id)
        if len(self.given_back) == self.breaks_at_give_back:
            self._watch.failed(unavailable("down"))
        await super().give_back(reservation)

    async def limits(self, principal: Principal) -> LimitState:
        self._ask("limits")
        return await super().limits(principal)

    async def append(
        self,
        event: UsageEvent,
        *,
        idempotency: IdempotencyKey | None,
        answer: RenderedAnswer | None,
        only_owner: bool = False,
    ) -> Appended:
        self._ask("append")
        if event.key_id in self.refuses:
            raise unavailable("other")
        if self.is_superseded and only_owner:
            raise IdempotencyKeyInUse(1.0)
        self.appended.append((event.request_id, answer is not None))
        return Appended("epoch-1", f"{len(self.appended)}-0")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.trouble is not None:
            raise self.trouble


class Watch:
    def __init__(self) -> None:
        self.in_fallback = False
        self.failures: list[str] = []

    def failed(self, error: AccountsUnavailable) -> None:
        self.failures.append(error.reason)
        self.in_fallback = True


class NoCharges:
    def add(self, key_id: str, tier: Tier, pictures: int) -> None: ...

    def take_back(self, key_id: str, pictures: int) -> None: ...


class World:
    def __init__(self, folder: Path) -> None:
        clock = ManualClock()
        self.watch = Watch()
        self.redis = Redis(clock, self.watch)
        self.retained = RetainedEvents(clock)
        self.journal = Journal(folder, Metrics(CollectorRegistry()))
        self.clock = clock
        self.local = local = LocalAccounts(
            clock,
            gateways=lambda: 1,
            admitted_at=clock.now,
            charges=NoCharges(),
            used_this_month=self.used_this_month,
        )
        self.admission = FallbackAdmission(self.redis, local, self.watch)
        self.meter = FallbackMeter(
            self.redis, local, self.watch, journal=self.journal, retained=self.retained
        )

    async def used_this_month(self, key_id: str) -> int | None:
        return None

    async def admit(
        self,
        request_id: str = "req_1",
        *,
        pictures: int = 1,
        idempotency: IdempotencyKey | None = None,
        caller: Principal = CALLER,
    ) -> Reservation:
        admitted = await self.admission.admit(
            caller, request_id=request_id, pictures=pictures, lease_seconds=10, idempotency=idempotency
        )
        assert isinstance(admitted, Reservation)
        return admitted

    async def settle(self, reservation: Reservation) -> None:
        await self.meter.settle(make_event(reservation.request_id), reservation, ANSWER)

    async def journaled(self) -> list[JournalRecord]:
        found: list[JournalRecord] = []

        async def take(records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
            found.extend(records)
            return []

        await self.journal.replay(take)
        return found


async def nothing_is_doubtful(partition: int, ids: object) -> set[tuple[int, int]]:
    raise AssertionError("nothing is doubtful")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "journal")
    yield world
    await world.journal.close()


async def test_while_redis_is_well_it_decides_and_has_it_all(world: World) -> None:
    reservation = await world.admit()
    await world.settle(reservation)
    await world.admission.give_back(await world.admit("req_2"))
    assert (await world.admission.limits(CALLER)).tokens == 9
    assert world.redis.asked == ["admit", "append", "admit", "give back", "limits"]
    assert len(world.retained) == 1
    assert await world.journaled() == []


async def test_a_request_whose_admission_fails_is_admitted_here_from_what_was_left(world: World) -> None:
    await world.admit(pictures=7)
    world.redis.trouble = unavailable("down")
    reservation = await world.admit("req_2", pictures=2)
    assert reservation.limits.tokens == 1
    assert world.watch.failures == ["down"]
    with pytest.raises(RateLimited):
        await world.admit("req_3", pictures=2)
    assert world.redis.asked == ["admit", "admit"]  # from the first failure on, nobody asks it


async def test_limits_that_cannot_be_asked_for_are_those_known_here(world: World) -> None:
    await world.admit(pictures=7)
    world.redis.trouble = unavailable("full")
    for _ in range(2):
        assert (await world.admission.limits(CALLER)).tokens == 3
    assert world.redis.asked == ["admit", "limits"]


async def test_an_answer_is_looked_for_here_and_then_in_redis(world: World) -> None:
    assert await world.admission.answered(CALLER, AGAIN) is None
    await world.settle(await world.admit(idempotency=AGAIN))
    assert await world.admission.answered(CALLER, AGAIN) == replace(ANSWER, replayed=True)
    assert world.redis.asked == ["answered", "admit", "append"]

    by_another_gateway = replace(AGAIN, key="elsewhere")
    reservation = await world.redis.admit(
        CALLER, request_id="req_2", pictures=1, lease_seconds=10, idempotency=by_another_gateway
    )
    assert isinstance(reservation, Reservation)
    world.redis.settle(make_event("req_2"), reservation, ANSWER)
    assert await world.admission.answered(CALLER, by_another_gateway) == replace(ANSWER, replayed=True)


async def test_in_fallback_an_answer_is_looked_for_here_alone(world: World) -> None:
    world.redis.trouble = unavailable("down")
    for _ in range(2):
        assert await world.admission.answered(CALLER, AGAIN) is None
    assert world.watch.failures == ["down"]
    assert world.redis.asked == ["answered"]


async def test_what_was_admitted_by_redis_and_settled_without_it_is_answered_here(world: World) -> None:
    reservation = await world.admit(idempotency=AGAIN)
    world.watch.in_fallback = True
    await world.settle(reservation)
    assert await world.admission.answered(CALLER, AGAIN) == replace(ANSWER, replayed=True)
    with pytest.raises(IdempotencyKeyReused):
        await world.admission.answered(CALLER, replace(AGAIN, fingerprint="b" * 64))
    assert world.redis.asked == ["admit"]


async def test_in_fallback_a_key_that_nobody_here_knows_has_to_wait(world: World) -> None:
    world.watch.in_fallback = True
    with pytest.raises(IdempotencyKeyUnsure):
        await world.admit(idempotency=AGAIN)
    await world.admit("req_2")


async def test_a_settlement_that_fails_is_journaled_in_the_same_request(world: World) -> None:
    reservation = await world.admit()
    world.redis.trouble = unavailable("slow")
    await world.settle(reservation)
    assert world.watch.failures == ["slow"]
    assert await world.journaled() == [JournalRecord(make_event("req_1"))]
    await world.settle(await world.admit("req_2"))
    assert [record.event.request_id for record in await world.journaled()] == ["req_2"]
    assert world.redis.asked == ["admit", "append"]


async def test_an_answer_that_may_be_asked_for_again_is_journaled_with_its_event(world: World) -> None:
    reservation = await world.admit(idempotency=AGAIN)
    world.watch.in_fallback = True
    await world.settle(reservation)
    assert await world.journaled() == [JournalRecord(make_event("req_1"), AGAIN, ANSWER)]


async def test_an_event_that_neither_takes_is_refused_and_its_answer_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = await world.admit(idempotency=AGAIN)
    world.redis.trouble = unavailable("down")
    monkeypatch.setattr("serving.adapters.journal.MAX_LINE_BYTES", 1)
    with pytest.raises(AccountsUnavailable):
        await world.settle(reservation)
    await world.admission.give_back(reservation)
    assert await world.admission.answered(CALLER, AGAIN) is None


async def test_a_request_that_lost_its_idempotency_key_is_billed_nowhere(world: World) -> None:
    reservation = await world.admit(idempotency=AGAIN)
    world.redis.is_superseded = True
    with pytest.raises(IdempotencyKeyInUse):
        await world.settle(reservation)
    assert world.redis.appended == []
    assert await world.journaled() == []
    assert not world.watch.in_fallback


async def test_what_redis_reserved_is_given_back_once_it_is_there_again(world: World) -> None:
    reservation = await world.admit(pictures=10)
    world.watch.in_fallback = True
    for _ in range(2):
        await world.admission.give_back(reservation)
    await world.admission.hand_over()
    assert world.redis.asked == ["admit"]
    world.watch.in_fallback = False
    await world.admission.hand_over()
    await world.admission.hand_over()
    assert world.redis.asked == ["admit", "give back"]
    await world.admit("req_2", pictures=10)


@pytest.mark.parametrize("reason", ["slow", "down"])
async def test_what_redis_may_have_reserved_for_a_request_that_fails_is_given_back_too(
    world: World, reason: AccountsTrouble
) -> None:
    world.redis.trouble = unavailable(reason)
    reservation = await world.admit("req_1", pictures=10)  # and then nobody asks Redis
    await world.admission.give_back(reservation)
    world.watch.in_fallback, world.redis.trouble = False, None
    await world.admission.hand_over()
    assert world.redis.given_back == ["req_1"]


async def test_a_request_that_redis_may_have_admitted_and_we_refuse_is_given_back(world: World) -> None:
    await world.admit(pictures=9)
    world.redis.trouble = unavailable("slow")
    with pytest.raises(IdempotencyKeyUnsure):
        await world.admit("req_2", pictures=5, idempotency=AGAIN)
    with pytest.raises(RateLimited):
        await world.admit("req_3", pictures=5)  # of which Redis never heard
    world.watch.in_fallback, world.redis.trouble = False, None
    await world.admission.hand_over()
    assert world.redis.given_back == ["req_2"]


async def test_a_request_that_is_tried_again_keeps_what_redis_reserves_the_second_time(world: World) -> None:
    reservation = await world.admit()
    world.watch.in_fallback = True
    await world.admission.give_back(reservation)
    world.watch.in_fallback = False
    await world.admit()
    await world.admission.hand_over()
    assert world.redis.given_back == []


async def test_handing_over_stops_where_redis_goes_again(world: World) -> None:
    caller = Principal(KEY, "ada", make_tier(rate=60, burst=1000), None)
    reservations = [await world.admit(f"req_{number}", caller=caller) for number in range(2 * AT_A_TIME)]
    world.watch.in_fallback = True
    for reservation in reservations:
        await world.admission.give_back(reservation)
    world.watch.in_fallback, world.redis.breaks_at_give_back = False, 3
    await world.admission.hand_over()
    assert world.watch.in_fallback
    assert len(world.redis.given_back) <= AT_A_TIME
    world.watch.in_fallback, world.redis.breaks_at_give_back = False, None
    await world.admission.hand_over()
    assert set(world.redis.given_back) == {each.request_id for each in reservations}
    assert world.redis.given_back.count("req_2") == 2  # nobody can tell whether it had got there


async def test_a_key_that_redis_refused_is_refused_here(world: World) -> None:
    caller = Principal(KEY, "ada", make_tier(rate=60, burst=10, monthly_quota=5), None)
    await world.admit(pictures=5, caller=caller)
    with pytest.raises(QuotaExceeded):
        await world.admit("req_2", caller=caller)
    world.redis.trouble = unavailable("down")
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            await world.admit("req_4", caller=caller)
    assert world.watch.in_fallback


async def test_a_key_that_was_only_ever_refused_is_refused_here(world: World) -> None:
    caller = Principal(KEY, "ada", make_tier(rate=60, burst=10, monthly_quota=5), None)
    world.redis.resume(caller, None, used=5)
    with pytest.raises(QuotaExceeded):
        await world.admit(caller=caller)
    world.redis.trouble = unavailable("down")
    with pytest.raises(QuotaExceeded):
        await world.admit("req_2", caller=caller)


async def test_an_idempotency_key_under_way_when_redis_goes_is_not_billed_twice(world: World) -> None:
    first = await world.admit(idempotency=AGAIN)
    world.redis.trouble = unavailable("down")
    with pytest.raises(IdempotencyKeyInUse):
        await world.admit("req_2", idempotency=AGAIN)
    await world.settle(first)
    assert [each.event.request_id for each in await world.journaled()] == ["req_1"]
    answer = await world.admission.admit(
        CALLER, request_id="req_3", pictures=1, lease_seconds=10, idempotency=AGAIN
    )
    assert answer == replace(ANSWER, replayed=True)


async def test_a_key_that_another_request_has_taken_over_is_not_journaled_for_the_first(world: World) -> None:
    first = await world.admit(idempotency=AGAIN)
    world.clock.advance(11)  # its lease has lapsed
    second = await world.admit("req_2", idempotency=AGAIN)
    world.watch.in_fallback = True
    with pytest.raises(IdempotencyKeyInUse):
        await world.settle(first)
    await world.settle(second)
    assert [each.event.request_id for each in await world.journaled()] == ["req_2"]


async def test_an_admission_that_another_request_has_overtaken_here_is_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = world.redis.admit

    async def overtaken(*args: Any, **kwargs: Any) -> Reservation | RenderedAnswer:
        admitted = await admit(*args, **kwargs)
        assert isinstance(admitted, Reservation)
        world.local.claim(replace(admitted, request_id="req_2"), 10)
        return admitted

    monkeypatch.setattr(world.redis, "admit", overtaken)
    with pytest.raises(IdempotencyKeyInUse):
        await world.admit(idempotency=AGAIN)
    assert world.redis.given_back == ["req_1"]


async def test_trouble_with_one_key_is_not_trouble_with_redis(world: World) -> None:
    await world.admit(pictures=7)
    world.redis.trouble = unavailable("other")
    reservation = await world.admit("req_2", pictures=3)
    assert (await world.admission.limits(CALLER)).tokens == 0
    await world.settle(reservation)
    assert world.watch.failures == []
    world.redis.trouble = None
    assert [each.event.request_id for each in await world.journaled()] == ["req_2"]


async def test_a_journaled_event_that_redis_refuses_does_not_keep_back_the_others(world: World) -> None:
    world.watch.in_fallback = True
    other = Principal("key_2", "bob", CALLER.tier, None)
    for caller, request_id in ((CALLER, "req_1"), (other, "req_2"), (CALLER, "req_3")):
        reservation = await world.admit(request_id, caller=caller)
        await world.meter.settle(make_event(request_id, key_id=caller.key_id), reservation, ANSWER)
    world.watch.in_fallback = False
    world.redis.refuses = {KEY}
    await world.meter.hand_over(nothing_is_doubtful)
    assert world.redis.appended == [("req_2", False)]
    world.redis.refuses = set()
    await world.meter.hand_over(nothing_is_doubtful)
    assert [request_id for request_id, _ in world.redis.appended] == ["req_2", "req_1", "req_3"]
    assert world.watch.failures == []


async def test_a_lost_event_that_redis_refuses_is_journaled_and_does_not_keep_back_the_others(
    world: World,
) -> None:
    for caller, request_id in ((CALLER, "req_1"), (Principal("key_2", "bob", CALLER.tier, None), "req_2")):
        reservation = await world.admit(request_id, caller=caller)
        await world.meter.settle(make_event(request_id, key_id=caller.key_id), reservation, ANSWER)
    for epoch in ("epoch-1", "epoch-2"):
        world.retained.follow(Pulse(number, epoch, "server", (0, 0), 0) for number in range(PARTITIONS))
    world.redis.refuses = {KEY}
    world.redis.appended.clear()
    await world.meter.hand_over(nothing_is_doubtful)
    assert world.redis.appended == [("req_2", False)]
    assert [each.event.request_id for each in await world.journaled()] == ["req_1"]


async def test_what_was_admitted_here_is_settled_by_redis_once_it_is_back_and_ends_here(world: World) -> None:
    world.watch.in_fallback = True
    first, second = await world.admit(pictures=5), await world.admit("req_2", pictures=5)
    world.watch.in_fallback = False
    await world.settle(first)
    await world.admission.give_back(second)
    assert world.redis.asked == ["append"]
    assert await world.journaled() == []
    world.watch.in_fallback = True
    await world.admit("req_3", pictures=5)  # what was given back is there again
    with pytest.raises(RateLimited):
        await world.admit("req_4", pictures=5)


async def test_an_answer_of_redis_that_comes_after_the_trouble_does_not_fill_the_bucket_here(
    world: World,
) -> None:
    await world.admit(pictures=9)
    world.watch.in_fallback = True
    await world.admit("req_2")
    world.watch.in_fallback = False
    world.redis.breaks_after = True
    await world.admit("req_3")
    with pytest.raises(RateLimited):
        await world.admit("req_4")


async def test_what_waits_is_handed_over_whoever_owns_the_keys_and_retained(world: World) -> None:
    of_redis = await world.admit("req_2", idempotency=AGAIN)
    world.watch.in_fallback = True
    await world.settle(await world.admit())
    await world.settle(of_redis)
    world.watch.in_fallback = False
    world.redis.is_superseded = True

    await world.meter.hand_over(nothing_is_doubtful)
    assert world.redis.appended == [("req_1", False), ("req_2", True)]
    assert len(world.retained) == 2
    assert await world.journaled() == []
