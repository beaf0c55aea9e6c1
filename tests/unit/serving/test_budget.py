"""A budget is never exceeded, serves the urgent first, then who came first, and forgets those who left."""

from __future__ import annotations

import asyncio

import pytest

from serving.budget import Budget


async def test_it_waits_for_room_in_order() -> None:
    budget = Budget(10)
    order: list[str] = []
    release = asyncio.Event()

    async def hold(name: str, units: int) -> None:
        async with budget.hold(units, priority=1):
            order.append(name)
            await release.wait()

    tasks = []
    for name, units in (("first", 8), ("large", 9), ("small", 1)):
        tasks.append(asyncio.create_task(hold(name, units)))
        await asyncio.sleep(0)

    assert (order, budget.held) == (["first"], 8)  # small would fit, but large came before it
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "large", "small"]
    assert budget.held == 0


async def test_the_urgent_are_served_first_whenever_they_came() -> None:
    budget = Budget(10)
    order: list[str] = []

    async def hold(name: str, priority: int) -> None:
        async with budget.hold(10, priority=priority):
            order.append(name)

    async with asyncio.TaskGroup() as group, budget.hold(10, priority=3):
        for name, priority in (("free", 3), ("pro", 2), ("free too", 3), ("enterprise", 1), ("pro too", 2)):
            group.create_task(hold(name, priority))
            await asyncio.sleep(0)
        assert order == []

    assert order == ["enterprise", "pro", "pro too", "free", "free too"]


async def test_the_urgent_take_what_is_left_past_those_who_wait_for_more() -> None:
    budget = Budget(10)
    async with budget.hold(8, priority=3):
        large = asyncio.create_task(_hold(budget, 9, priority=2))
        await asyncio.sleep(0)

        async with budget.hold(2, priority=1):
            assert budget.held == 10
        for priority in (2, 3):
            small = asyncio.create_task(_hold(budget, 1, priority=priority))
            await asyncio.sleep(0)
            assert not small.done()  # it would fit, but large came before it

    await asyncio.gather(large, small)


async def test_something_is_left_to_the_urgent_however_many_others_come() -> None:
    """Of ten, two for each step: the least urgent take six at most, the next eight, the most urgent all."""
    budget = Budget(10, left_to_the_urgent=2)
    held_at_turn: list[tuple[int, int]] = []
    ends = asyncio.Event()

    async def hold(priority: int) -> None:
        async with budget.hold(1, priority=priority):
            held_at_turn.append((priority, budget.held))
            await ends.wait()

    async with asyncio.TaskGroup() as group:
        for priority in (3, 2, 1):
            for _ in range(10):
                group.create_task(hold(priority))
            await asyncio.sleep(0)
        before_the_end = list(held_at_turn)
        ends.set()

    assert before_the_end == [
        *((3, held) for held in range(1, 7)),
        *((2, held) for held in (7, 8)),
        *((1, held) for held in (9, 10)),
    ]
    assert len(held_at_turn) == 30
    assert budget.held == 0


async def test_alone_even_the_least_urgent_may_hold_all() -> None:
    budget = Budget(10, left_to_the_urgent=2)

    async with budget.hold(10, priority=3):
        waiting = asyncio.create_task(_hold(budget, 10, priority=3))
        await asyncio.sleep(0)
        assert not waiting.done()

    await waiting


async def test_one_who_leaves_the_queue_makes_room_for_those_behind() -> None:
    budget = Budget(10)
    async with budget.hold(8, priority=1):
        large = asyncio.create_task(_hold(budget, 9))
        small = asyncio.create_task(_hold(budget, 1))
        await asyncio.sleep(0)
        large.cancel()
        await small
        with pytest.raises(asyncio.CancelledError):
            await large

    assert budget.held == 0


async def test_a_cancellation_in_the_step_of_the_turn_gives_the_turn_back() -> None:
    budget = Budget(10)
    holding = budget.hold(10, priority=1)
    await holding.__aenter__()
    waiting = asyncio.create_task(_hold(budget, 10))
    await asyncio.sleep(0)
    await holding.__aexit__(None, None, None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert budget.held == 0


def test_taking_at_once_is_all_or_nothing() -> None:
    budget = Budget(10)

    assert budget.try_take(10)
    assert not budget.try_take(1)
    budget.give_back(10)
    assert budget.try_take(1)


async def test_what_never_fits_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(ValueError, match="never fit"):
        async with Budget(10).hold(11, priority=1):
            pass


async def test_a_thousand_holders_never_exceed_it() -> None:
    budget, most = Budget(7), 0

    async def hold(units: int) -> None:
        nonlocal most
        async with budget.hold(units, priority=1):
            most = max(most, budget.held)
            await asyncio.sleep(0)

    await asyncio.gather(*(hold(1 + number % 7) for number in range(1000)))
    assert most == 7
    assert budget.held == 0


async def _hold(budget: Budget, units: int, *, priority: int = 1) -> None:
    async with budget.hold(units, priority=priority):
        pass
