"""A budget is never exceeded, serves who came first, and forgets those who left."""

from __future__ import annotations

import asyncio

import pytest

from serving.budget import Budget


async def test_it_waits_for_room_in_order() -> None:
    budget = Budget(10)
    order: list[str] = []
    release = asyncio.Event()

    async def hold(name: str, units: int) -> None:
        async with budget.hold(units):
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


async def test_one_who_leaves_the_queue_makes_room_for_those_behind() -> None:
    budget = Budget(10)
    async with budget.hold(8):
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
    holding = budget.hold(10)
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
        async with Budget(10).hold(11):
            pass


async def test_a_thousand_holders_never_exceed_it() -> None:
    budget, most = Budget(7), 0

    async def hold(units: int) -> None:
        nonlocal most
        async with budget.hold(units):
            most = max(most, budget.held)
            await asyncio.sleep(0)

    await asyncio.gather(*(hold(1 + number % 7) for number in range(1000)))
    assert most == 7
    assert budget.held == 0


async def _hold(budget: Budget, units: int) -> None:
    async with budget.hold(units):
        pass
