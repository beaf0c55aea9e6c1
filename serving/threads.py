"""Threads, and a line in front of them that knows priorities; an executor's own knows arrival only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from serving.budget import Budget

P = ParamSpec("P")
T = TypeVar("T")


class PriorityThreads:
    """At most `count` jobs are with the executor, so that waiting happens here, where the urgent go first.

    For one event loop. A job that has begun is not interrupted: the most urgent waits for one at most.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor = executor
        self._places = Budget(count)

    async def run(self, priority: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Whoever is cancelled leaves at once; a thread that has begun goes on, and keeps its place."""
        return await asyncio.wrap_future(await self._begin(priority, partial(work, *args, **kwargs)))

    async def run_to_its_end(
        self, priority: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `run`, but whoever is cancelled leaves only when no thread works any more.

        For work that writes into what will be somebody else's next.
        """
        job = await self._begin(priority, partial(work, *args, **kwargs))
        try:
            return await asyncio.wrap_future(job)
        finally:
            while not job.done():  # cancelled, perhaps more than once, after it had begun
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(asyncio.wrap_future(job), return_exceptions=True)

    async def _begin(self, priority: int, work: Callable[[], T]) -> Future[T]:
        await self._places.take(1, priority=priority)
        loop = asyncio.get_running_loop()

        def leave(_: Future[Any]) -> None:  # in the thread, as a rule
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(self._places.give_back, 1)

        try:
            job = self._executor.submit(work)
        except BaseException:
            self._places.give_back(1)
            raise
        job.add_done_callback(leave)
        return job
