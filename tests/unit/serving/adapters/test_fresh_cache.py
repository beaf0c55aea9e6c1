from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from serving.adapters.fresh_cache import Answer, FreshCache
from serving.adapters.memory.clock import ManualClock
from serving.errors import Overloaded


class Source:
    """Answers each key with the number of times it was asked, when `may_answer` is set."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.asked: list[str] = []
        self._asked = asyncio.Semaphore(0)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.before_answer: Callable[[], None] = lambda: None

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(10):
            for _ in range(times):
                await self._asked.acquire()

    async def load(self, key: str) -> Answer[int]:
        asked_at = self._clock.monotonic()
        self.asked.append(key)
        self._asked.release()
        await self.may_answer.wait()
        self.before_answer()
        return Answer(self.asked.count(key), asked_at)


def cache_of(
    source: Source,
    clock: ManualClock,
    *,
    max_entries: int = 10,
    max_loads: int = 10,
    timeout_seconds: float = 30.0,
) -> FreshCache[str, int]:
    return FreshCache(
        source.load,
        clock=clock,
        max_age_seconds=1.0,
        max_confirmed_seconds=60.0,
        max_entries=max_entries,
        max_loads=max_loads,
        timeout_seconds=timeout_seconds,
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def source(clock: ManualClock) -> Source:
    return Source(clock)


async def test_an_answer_serves_for_its_time_and_no_longer(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)
    answers = []
    for _ in range(5):
        answers.append(await cache.get("a"))
        clock.advance(0.5)

    assert answers == [1, 1, 2, 2, 3]


async def test_askers_of_one_key_share_one_load(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)

    answers = await asyncio.gather(
        *(cache.get("a") for _ in range(200)), *(cache.get("b") for _ in range(200))
    )

    assert source.asked == ["a", "b"]
    assert set(answers) == {1}


async def test_an_asker_who_leaves_takes_nobody_along(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)
    source.may_answer.clear()
    leaver, stayer = asyncio.create_task(cache.get("a")), asyncio.create_task(cache.get("a"))
    await source.until_asked(1)

    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    source.may_answer.set()

    assert await stayer == 1
    assert source.asked == ["a"]


async def test_an_answer_that_came_too_late_is_asked_for_again(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)

    def be_slow_once() -> None:
        clock.advance(1.0)
        source.before_answer = lambda: None

    source.before_answer = be_slow_once

    assert await cache.get("a") == 2


async def test_a_failure_reaches_every_asker_and_is_not_kept(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)

    def fail_once() -> None:
        source.before_answer = lambda: None
        raise OSError("gone")

    source.before_answer = fail_once

    answers = await asyncio.gather(*(cache.get("a") for _ in range(3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [OSError] * 3
    assert await cache.get("a") == 2


async def test_the_longest_unused_answer_makes_room(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock, max_entries=2)
    for key in ("a", "b", "a", "c"):
        await cache.get(key)

    assert await cache.get("a") == 1
    assert await cache.get("b") == 2


async def test_too_many_loads_at_once_are_refused(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock, max_loads=2)
    source.may_answer.clear()
    waiting = [asyncio.create_task(cache.get(key)) for key in ("a", "b")]
    await source.until_asked(2)

    with pytest.raises(Overloaded):
        await cache.get("c")
    joined = asyncio.create_task(cache.get("a"))
    source.may_answer.set()

    assert await asyncio.gather(*waiting, joined) == [1, 1, 1]


async def test_a_load_that_hangs_is_given_up_but_not_doubled(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock, timeout_seconds=0.01)
    source.may_answer.clear()

    for _ in range(2):
        with pytest.raises(TimeoutError):
            await cache.get("a")

    assert source.asked == ["a"]
    await cache.close()


async def test_close_ends_what_is_under_way(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)
    source.may_answer.clear()
    asker = asyncio.create_task(cache.get("a"))
    await source.until_asked(1)

    await cache.close()

    with pytest.raises(asyncio.CancelledError):
        await asker


async def test_a_confirmed_answer_serves_on_for_its_time_after_each_confirmation(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    answers = [await cache.get("a")]
    for _ in range(4):
        clock.advance(0.75)
        cache.confirm(clock.monotonic())
        answers.append(await cache.get("a"))
    clock.advance(0.75)
    answers.append(await cache.get("a"))

    assert answers == [1, 1, 1, 1, 1, 1]
    clock.advance(0.25)
    assert await cache.get("a") == 2


async def test_a_confirmation_of_an_earlier_moment_takes_nothing_back(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    await cache.get("a")
    clock.advance(2.0)
    cache.confirm(1.75)
    cache.confirm(0.5)

    assert await cache.get("a") == 1


async def test_a_confirmation_goes_on_from_the_last_one_but_not_over_a_gap(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    answers = [await cache.get("a")]
    cache.confirm(clock.monotonic())
    for gap_seconds in (0.75, 0.75, 1.0):
        clock.advance(gap_seconds)
        cache.confirm_on(clock.monotonic())
        answers.append(await cache.get("a"))

    assert answers == [1, 1, 1, 2]


async def test_nothing_is_confirmed_beyond_its_bound(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock)
    await cache.get("a")

    clock.advance(59.75)
    cache.confirm(clock.monotonic())
    before = await cache.get("a")
    clock.advance(0.25)
    cache.confirm(clock.monotonic())

    assert (before, await cache.get("a")) == (1, 2)


async def test_what_is_forgotten_is_asked_for_again_and_nothing_else(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    for key in ("a", "b", "b"):
        await cache.get(key)
    clock.advance(1.0)
    assert await cache.get("b") == 2

    cache.forget(lambda answer: answer == 1)

    assert await cache.get("b") == 2
    assert await cache.get("a") == 2
    assert source.asked == ["a", "b", "b", "a"]


async def test_an_answer_that_was_under_way_when_all_was_forgotten_is_given_to_nobody_new(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    source.may_answer.clear()
    before = asyncio.create_task(cache.get("a"))
    await source.until_asked(1)

    cache.forget(lambda _: True)
    after = asyncio.create_task(cache.get("a"))
    await source.until_asked(1)
    source.may_answer.set()
    await asyncio.gather(before, after)
    clock.advance(0.5)
    cache.confirm(clock.monotonic())

    assert source.asked == ["a", "a"]  # `before` may have what it asked for; `after` asked for itself
    assert await cache.get("a") == 2


async def test_an_answer_under_way_that_was_forgotten_is_never_confirmed(
    source: Source, clock: ManualClock
) -> None:
    cache = cache_of(source, clock)
    source.may_answer.clear()
    asker = asyncio.create_task(cache.get("a"))
    await source.until_asked(1)
    cache.forget(lambda _: False)
    clock.advance(1.0)
    cache.confirm(clock.monotonic())

    source.may_answer.set()

    assert await asker == 2
    assert source.asked == ["a", "a"]


async def test_loads_that_were_forgotten_count_until_they_end(source: Source, clock: ManualClock) -> None:
    cache = cache_of(source, clock, max_loads=2)
    source.may_answer.clear()
    waiting = []
    for _ in range(2):
        waiting.append(asyncio.create_task(cache.get("a")))
        await source.until_asked(1)
        cache.forget(lambda _: True)

    with pytest.raises(Overloaded):
        await cache.get("a")

    source.may_answer.set()
    await asyncio.gather(*waiting)
    assert await cache.get("a") == 3
