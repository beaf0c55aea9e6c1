from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.memory.clock import ManualClock
from serving.adapters.redis.pulse import Pulse
from serving.adapters.redis.trouble import unavailable
from serving.adapters.redis.watch import LASTING_SECONDS, MOST_GOOD_LOOKS, AccountsWatch
from serving.errors import AccountsUnavailable, BackendUnavailable
from serving.metrics import Metrics

CALL_TIMEOUT_SECONDS = 0.25
WELL = [Pulse(partition, "e1", "server", (0, 0), 0) for partition in range(2)]
DOWN = unavailable("down")


class World:
    """What the watch looks at and calls, and in which order it did."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics(CollectorRegistry())
        self.pulses: Sequence[Pulse] = WELL
        self.trouble: Exception | None = None
        self.look_seconds = 0.0
        self.ledger_trouble: Exception | None = None
        self.admitted_here = [False]
        self.hand_over_trouble: Exception | None = None
        self.may_hand_over = asyncio.Event()
        self.may_hand_over.set()
        self.followed = asyncio.Event()
        self.calls: list[str] = []
        self.watch = AccountsWatch(
            look=self.look,
            prime=self.prime,
            charge=self.charge,
            hand_over=self.hand_over,
            follow=self.follow,
            clock=self.clock,
            metrics=self.metrics,
            call_timeout_seconds=CALL_TIMEOUT_SECONDS,
        )

    async def look(self) -> Sequence[Pulse]:
        self.calls.append("look")
        self.clock.advance(self.look_seconds)
        if self.trouble is not None:
            raise self.trouble
        return self.pulses

    async def prime(self) -> None:
        self.calls.append("prime")
        if self.ledger_trouble is not None:
            raise self.ledger_trouble
        self.pulses = WELL

    async def charge(self) -> bool:
        self.calls.append("charge")
        if self.trouble is not None:
            raise self.trouble
        return self.admitted_here.pop() if self.admitted_here else False

    async def hand_over(self) -> None:
        self.calls.append("hand over")
        await self.may_hand_over.wait()
        if self.hand_over_trouble is not None:
            raise self.hand_over_trouble

    def follow(self, pulses: Sequence[Pulse]) -> None:
        self.calls.append("follow")
        self.followed.set()

    async def steps(self, count: int) -> list[str]:
        """What was called in so many steps, and by what they began in the background."""
        self.calls.clear()
        for _ in range(count):
            await self.watch.step()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return self.calls.copy()

    async def steps_until_normal(self) -> int:
        for count in range(1, 100):
            await self.steps(1)
            if not self.in_fallback():
                return count
        raise AssertionError("the fallback was never left")

    def in_fallback(self) -> bool:
        return self.watch.in_fallback

    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("visiongate_accounts_fallback")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.watch.close()


async def test_a_redis_that_is_well_is_looked_at_followed_and_handed_what_there_is(world: World) -> None:
    assert await world.steps(2) == ["look", "follow", "hand over"] * 2
    assert not world.in_fallback()
    assert world.gauge() == 0


async def test_a_failed_call_enters_at_once_and_two_good_looks_leave(world: World) -> None:
    world.watch.failed(DOWN)
    assert world.gauge() == 1
    assert await world.steps(1) == ["look"]
    assert world.in_fallback()
    assert await world.steps(1) == ["look", "charge", "follow", "hand over"]
    assert not world.in_fallback()
    assert world.gauge() == 0


async def test_trouble_is_found_without_traffic(world: World) -> None:
    world.trouble = DOWN
    await world.steps(1)
    assert world.in_fallback()


async def test_one_more_bad_look_and_counting_begins_anew(world: World) -> None:
    world.watch.failed(DOWN)
    await world.steps(1)
    world.trouble = DOWN
    await world.steps(1)
    world.trouble = None
    assert await world.steps_until_normal() == 2


async def test_a_call_that_fails_between_two_good_looks_begins_anew(world: World) -> None:
    world.watch.failed(DOWN)
    await world.steps(1)
    world.watch.failed(DOWN)
    assert await world.steps_until_normal() == 2


async def test_a_look_that_is_slow_is_not_good(world: World) -> None:
    world.watch.failed(DOWN)
    world.look_seconds = CALL_TIMEOUT_SECONDS / 2 + 0.001
    await world.steps(10)
    assert world.in_fallback()
    world.look_seconds = CALL_TIMEOUT_SECONDS / 2
    assert await world.steps_until_normal() == 2


async def test_an_epoch_that_is_missing_is_primed_before_anything_is_charged(world: World) -> None:
    world.pulses = [WELL[0], replace(WELL[1], epoch=None)]
    await world.steps(1)
    assert world.in_fallback()
    assert await world.steps(2) == ["look", "prime", "look", "look", "charge", "follow", "hand over"]
    assert not world.in_fallback()


@pytest.mark.parametrize("trouble", [BackendUnavailable("no database"), RuntimeError("a mistake")])
async def test_a_ledger_that_is_gone_keeps_the_fallback_until_it_is_back(
    world: World, trouble: Exception
) -> None:
    world.pulses = [replace(WELL[0], epoch=None)]
    world.ledger_trouble = trouble
    await world.steps(10)
    assert world.in_fallback()
    world.ledger_trouble = None
    await world.steps_until_normal()


async def test_nothing_is_lost_of_a_charge_that_fails(world: World) -> None:
    world.watch.failed(DOWN)
    await world.steps(1)

    async def failing() -> bool:
        raise DOWN

    charge, world.watch._charge = world.watch._charge, failing
    await world.steps(1)
    assert world.in_fallback()
    world.watch._charge = charge
    assert await world.steps_until_normal() == 2


async def test_what_is_admitted_during_the_charge_is_charged_after_it(world: World) -> None:
    world.admitted_here = [False, True]
    world.watch.failed(DOWN)
    assert await world.steps(2) == ["look", "look", "charge", "follow", "charge", "hand over"]


async def test_a_call_that_fails_during_the_charge_stops_the_return(world: World) -> None:
    world.watch.failed(DOWN)
    charge = world.watch._charge

    async def overtaken() -> bool:
        world.watch.failed(DOWN)
        return await charge()

    await world.steps(1)
    world.watch._charge = overtaken
    await world.steps(1)
    assert world.in_fallback()


async def test_a_redis_that_comes_and_goes_has_to_be_good_for_longer_each_time(world: World) -> None:
    looks = []
    for _ in range(8):
        world.watch.failed(DOWN)
        looks.append(await world.steps_until_normal())
    assert looks == [2, 3, 4, 5, 6, 7, MOST_GOOD_LOOKS, MOST_GOOD_LOOKS]
    world.clock.advance(LASTING_SECONDS)
    world.watch.failed(DOWN)
    assert await world.steps_until_normal() == 2


async def test_handing_over_does_not_hold_up_the_looks_nor_begin_twice(world: World) -> None:
    world.may_hand_over.clear()
    calls = await world.steps(3)
    assert calls.count("look") == 3
    assert calls.count("hand over") == 1
    world.may_hand_over.set()
    assert (await world.steps(2)).count("hand over") == 1


@pytest.mark.parametrize(
    ("trouble", "falls_back"),
    [
        (unavailable("full"), True),
        (unavailable("other"), False),
        (OSError("a bad sector"), False),
        (RuntimeError("a mistake"), False),
    ],
)
async def test_handing_over_that_fails_is_tried_again(
    world: World, trouble: Exception, falls_back: bool
) -> None:
    world.hand_over_trouble = trouble
    await world.steps(1)
    assert world.in_fallback() is falls_back
    world.hand_over_trouble = None
    assert "hand over" in await world.steps(2)
    assert not world.in_fallback()


async def test_a_mistake_of_ours_is_trouble_and_ends_nothing(world: World) -> None:
    world.trouble = RuntimeError("a mistake")
    await world.steps(1)
    assert world.in_fallback()
    world.trouble = None
    assert await world.steps_until_normal() == 2


async def test_a_start_without_redis_is_a_start_in_fallback(world: World) -> None:
    world.trouble = DOWN
    await world.watch.start()
    assert world.in_fallback()


async def test_a_start_on_a_new_redis_is_over_when_it_is_primed(world: World) -> None:
    world.pulses = [replace(WELL[0], epoch=None)]
    await world.watch.start()
    assert not world.in_fallback()
    world.watch.failed(DOWN)
    assert await world.steps_until_normal() == 2


async def test_run_looks_by_itself_and_at_once_goes_on_at_the_fallbacks_pace(world: World) -> None:
    running = asyncio.create_task(world.watch.run())
    world.watch.failed(AccountsUnavailable("down", reason="down"))
    await asyncio.wait_for(world.followed.wait(), timeout=10)
    running.cancel()
    assert world.calls[:3] == ["look", "look", "charge"]
    assert not world.in_fallback()
