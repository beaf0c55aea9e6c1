"""Jobs wait where priority counts, and never where it does not; the threads here are real."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from serving.threads import PriorityThreads


class CountingExecutor(ThreadPoolExecutor):
    """Notes the most jobs that were with it at a time, under way or waiting."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

        def counted() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                with self._lock:
                    self._now -= 1

        return super().submit(counted)


class Gate:
    """A job that has begun once `begun` is set, and ends when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.let.wait(20)


@pytest.fixture
async def executor() -> AsyncIterator[CountingExecutor]:
    with CountingExecutor(2) as made:
        yield made


async def test_a_job_gets_its_arguments_and_its_caller_the_result(executor: CountingExecutor) -> None:
    assert await PriorityThreads(executor, 2).run(1, divmod, 17, 5) == (3, 2)
    assert await PriorityThreads(executor, 2).run_to_its_end(1, int, "12", base=8) == 10


async def test_what_a_job_raises_is_its_callers_and_its_place_is_free_again(
    executor: CountingExecutor,
) -> None:
    threads = PriorityThreads(executor, 1)

    for run in (threads.run, threads.run_to_its_end):
        with pytest.raises(ZeroDivisionError):
            await run(1, divmod, 1, 0)

    assert await threads.run(1, abs, -1) == 1


async def test_the_urgent_go_next_whenever_they_came(executor: CountingExecutor) -> None:
    threads, gate = PriorityThreads(executor, 1), Gate()
    order: list[str] = []
    running = asyncio.create_task(threads.run(3, gate))
    assert await asyncio.to_thread(gate.begun.wait, 20)
    waiting = []
    for name, priority in (("free", 3), ("pro", 2), ("free too", 3), ("enterprise", 1)):
        waiting.append(asyncio.create_task(threads.run(priority, order.append, name)))
        await asyncio.sleep(0)

    gate.let.set()
    await asyncio.gather(running, *waiting)

    assert order == ["enterprise", "pro", "free", "free too"]


async def test_as_many_jobs_as_threads_are_with_the_executor_at_most(executor: CountingExecutor) -> None:
    threads = PriorityThreads(executor, 2)

    await asyncio.gather(*(threads.run(1 + number % 3, abs, number) for number in range(200)))

    assert executor.most == 2


async def test_a_thread_whose_caller_has_left_keeps_its_place_until_it_is_done(
    executor: CountingExecutor,
) -> None:
    threads, gate = PriorityThreads(executor, 1), Gate()
    leaving = asyncio.create_task(threads.run(1, gate))
    assert await asyncio.to_thread(gate.begun.wait, 20)
    next_one = asyncio.create_task(threads.run(1, abs, -1))

    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert executor.most == 1  # so the next one waits here, where a more urgent one would overtake it

    gate.let.set()
    assert await next_one == 1
    assert executor.most == 1


async def test_one_who_leaves_the_line_has_no_work_done(executor: CountingExecutor) -> None:
    threads, gate = PriorityThreads(executor, 1), Gate()
    done: list[str] = []
    running = asyncio.create_task(threads.run(1, gate))
    assert await asyncio.to_thread(gate.begun.wait, 20)
    leaving, staying = (asyncio.create_task(threads.run(1, done.append, name)) for name in ("a", "b"))
    await asyncio.sleep(0)

    leaving.cancel()
    gate.let.set()
    await asyncio.gather(running, staying)

    assert done == ["b"]
    assert leaving.cancelled()


async def test_to_its_end_nobody_leaves_before_the_thread_is_done(executor: CountingExecutor) -> None:
    threads, gate = PriorityThreads(executor, 1), Gate()
    leaving = asyncio.create_task(threads.run_to_its_end(1, gate))
    assert await asyncio.to_thread(gate.begun.wait, 20)

    for _ in range(3):  # whoever is impatient cancels again
        leaving.cancel()
        await asyncio.wait([leaving], timeout=0.01)
        assert not leaving.done()
    gate.let.set()

    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_threads_that_are_shut_down_refuse_everybody(executor: CountingExecutor) -> None:
    threads = PriorityThreads(executor, 1)
    executor.shutdown()

    for _ in range(2):  # also the second: the first has left no place taken
        with pytest.raises(RuntimeError, match="shutdown"):
            await asyncio.wait_for(threads.run(1, abs, -1), 5)
