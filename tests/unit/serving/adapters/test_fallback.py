from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.fallback import FallbackAdmission, FallbackMeter
from serving.adapters.journal import Journal
from serving.adapters.journal_record import JournalRecord
from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.retained import RetainedEvents
from serving.adapters.redis.trouble import unavailable
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import AccountsUnavailable, IdempotencyKeyInUse, RateLimited
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

    async def give_back(self, reservation: Reservation) -> None:
        self.asked.append("give back")
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
        local = LocalAccounts(clock, gateways=lambda: 1, admitted_at=clock.now, charges=NoCharges())
        self.admission = FallbackAdmission(self.redis, local, self.watch)
        self.meter = FallbackMeter(
            self.redis, local, self.watch, journal=self.journal, retained=self.retained
        )

    async def admit(
        self, request_id: str = "req_1", *, pictures: int = 1, idempotency: IdempotencyKey | None = None
    ) -> Reservation:
        admitted = await self.admission.admit(
            CALLER, request_id=request_id, pictures=pictures, lease_seconds=10, idempotency=idempotency
        )
        assert isinstance(admitted, Reservation)
        return admitted

    async def settle(self, reservation: Reservation) -> None:
        await self.meter.settle(make_event(reservation.request_id), reservation, ANSWER)

    async def journaled(self) -> list[JournalRecord]:
        found: list[JournalRecord] = []

        async def take(records: Sequence[JournalRecord]) -> None:
            found.extend(records)

        await self.journal.replay(take)
        return found


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
    world.watch.in_fallback = True
    await world.settle(await world.admit(idempotency=AGAIN))
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
    await world.admit("req_2", idempotency=AGAIN)


async def test_a_request_that_lost_its_idempotency_key_is_billed_nowhere(world: World) -> None:
    reservation = await world.admit(idempotency=AGAIN)
    world.redis.is_superseded = True
    with pytest.raises(IdempotencyKeyInUse):
        await world.settle(reservation)
    assert world.redis.appended == []
    assert await world.journaled() == []
    assert not world.watch.in_fallback


async def test_what_redis_reserved_is_left_to_lapse_where_it_cannot_be_given_back(world: World) -> None:
    reservation = await world.admit()
    world.watch.in_fallback = True
    await world.admission.give_back(reservation)
    assert world.redis.asked == ["admit"]


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
    world.watch.in_fallback = True
    await world.settle(await world.admit())
    await world.settle(await world.admit("req_2", idempotency=AGAIN))
    world.watch.in_fallback = False
    world.redis.is_superseded = True

    async def absent(partition: int, ids: object) -> set[tuple[int, int]]:
        raise AssertionError("nothing is doubtful")

    await world.meter.hand_over(absent)
    assert world.redis.appended == [("req_1", False), ("req_2", True)]
    assert len(world.retained) == 2
    assert await world.journaled() == []
