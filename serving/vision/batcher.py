"""Requests that arrive together share one call; nobody waits while the server is idle.

::

    submit ─► waiting (bounded, by priority, then arrival) ─► a batch, once fewer than the most are in flight
                 │ deadline passes or client leaves: out          │ run(items): one result or error an item
                 └─► DeadlineExceeded                             └─► each submitter gets its own

There is no timer that holds a batch open: while batches are in flight, what arrives gathers, and leaves as
one when a place becomes free. So batches are as large as the load makes them, and an idle server answers at
once.

Priority 1 goes before 2, and never waits for it to make room:

- A batch holds one priority. Its items are answered together, so an urgent one among fifteen that are not
  would wait for all of them to be computed.
- A batch finds its place taken only by batches that are as urgent or more: the most are in flight of each
  priority and those above it, and a flood of the least urgent keeps no other from leaving at once.
- Where the queue is full, a newcomer takes the place of the last that came of the least urgent, which is
  refused in its stead.

Nothing is promised to the least urgent: while the more urgent fill every place, it waits until its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from serving.errors import BackendUnavailable, DeadlineExceeded, InternalError, Overloaded, VisiongateError
from serving.ports import Clock
from serving.waiting_line import WaitingLine

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

Run: TypeAlias = Callable[[Sequence[Item]], Awaitable[Sequence[Result | VisiongateError]]]
"""Works on a whole batch: one result or error an item, in order. What it raises is every item's error."""


@dataclass(frozen=True, slots=True)
class Batched(Generic[Result]):
    """A result, how long its item waited for a batch to leave, and how many items the batch had."""

    result: Result
    queue_seconds: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    priority: int
    deadline: float
    submitted_at: float
    answer: asyncio.Future[Batched[Result]]
    batch: _Batch[Item, Result] | None = None

    def resolve(self, result: Result | VisiongateError, *, queue_seconds: float, batch_size: int) -> None:
        if isinstance(result, VisiongateError):
            self.fail(result)
        elif not self.answer.done():
            self.answer.set_result(Batched(result, queue_seconds, batch_size))

    def fail(self, error: VisiongateError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(eq=False, slots=True)
class _Batch(Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
    started_at: float
    task: asyncio.Task[None] | None = None
    awaited: set[_Entry[Item, Result]] = field(default_factory=set)


class Batcher(Generic[Item, Result]):
    """Belongs to one event loop. `deadline` and the clock's `monotonic` are on the same line, in seconds.

    max_batches_in_flight: of one priority together with all that are more urgent.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        *,
        max_batch_size: int,
        max_batches_in_flight: int,
        max_queue_size: int,
        clock: Clock,
    ) -> None:
        if min(max_batch_size, max_batches_in_flight, max_queue_size) < 1:
            raise ValueError("every bound of a batcher is at least 1")
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_batches_in_flight = max_batches_in_flight
        self._max_queue_size = max_queue_size
        self._clock = clock
        self._waiting: WaitingLine[_Entry[Item, Result]] = WaitingLine()
        self._in_flight: dict[asyncio.Task[None], int] = {}  # with the priority of each
        self._closed = False

    async def submit(self, item: Item, *, deadline: float, priority: int) -> Batched[Result]:
        """Wait for the item's own result.

        Raises Overloaded at once when the queue is full of what is as urgent or more, and later when
        something more urgent takes the item's place in it; DeadlineExceeded when the deadline passes, queued
        or running; BackendUnavailable after `close`; and what `run` raises or answers for the item.
        Cancelling takes the item out of the queue; a running batch is cancelled when nobody waits for any of
        its items any more.
        """
        entry = self._enqueue(item, deadline, priority)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(deadline - entry.submitted_at, self._expire, entry)
        try:
            return await entry.answer
        finally:
            timer.cancel()
            self._leave(entry)

    async def close(self) -> None:
        """Refuse new items, and return when those already accepted have been answered."""
        self._closed = True
        self._dispatch()
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _enqueue(self, item: Item, deadline: float, priority: int) -> _Entry[Item, Result]:
        now = self._clock.monotonic()
        if self._closed:
            raise BackendUnavailable("The server is shutting down.")
        if deadline <= now:
            raise DeadlineExceeded
        if len(self._waiting) >= min(self._max_batch_size, self._max_queue_size):
            self._dispatch()
        if len(self._waiting) >= self._max_queue_size:
            self._make_room_for(priority)
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(item, priority, deadline, now, loop.create_future())
        self._waiting.add(entry, priority)
        # Not at once, but after whoever else is ready in this turn of the loop: they arrived together.
        loop.call_soon(self._dispatch)
        return entry

    def _make_room_for(self, priority: int) -> None:
        least_urgent = self._waiting.least_urgent
        if least_urgent is None or priority >= least_urgent:
            raise Overloaded
        self._waiting.pop_last().fail(Overloaded())

    def _expire(self, entry: _Entry[Item, Result]) -> None:
        self._leave(entry)
        entry.fail(DeadlineExceeded())

    def _leave(self, entry: _Entry[Item, Result]) -> None:
        self._waiting.discard(entry, entry.priority)
        batch, entry.batch = entry.batch, None
        if batch is None:
            return
        batch.awaited.discard(entry)
        if not batch.awaited and batch.task is not None:
            batch.task.cancel()

    def _dispatch(self) -> None:
        while (priority := self._waiting.most_urgent) is not None and self._has_a_place_for(priority):
            now = self._clock.monotonic()
            entries = self._next_entries(priority, now)
            if not entries:
                continue
            batch = _Batch(entries, started_at=now, awaited=set(entries))
            for entry in entries:
                entry.batch = batch
            batch.task = asyncio.get_running_loop().create_task(self._work(batch))
            self._in_flight[batch.task] = priority
            batch.task.add_done_callback(self._finished)

    def _has_a_place_for(self, priority: int) -> bool:
        taken = sum(other <= priority for other in self._in_flight.values())
        return taken < self._max_batches_in_flight

    def _next_entries(self, priority: int, now: float) -> list[_Entry[Item, Result]]:
        entries: list[_Entry[Item, Result]] = []
        while self._waiting.most_urgent == priority and len(entries) < self._max_batch_size:
            entry = self._waiting.pop_first()
            if entry.deadline > now:
                entries.append(entry)
            else:  # its timer is due in this turn of the loop too, and may come after us
                self._expire(entry)
        return entries

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._dispatch()

    async def _work(self, batch: _Batch[Item, Result]) -> None:
        try:
            for entry, result in zip(batch.entries, await self._results(batch), strict=True):
                entry.resolve(
                    result,
                    queue_seconds=batch.started_at - entry.submitted_at,
                    batch_size=len(batch.entries),
                )
        finally:
            for entry in batch.entries:  # where `run` was cancelled from inside, somebody may still wait
                entry.fail(InternalError())

    async def _results(self, batch: _Batch[Item, Result]) -> Sequence[Result | VisiongateError]:
        count = len(batch.entries)
        try:
            results = await self._run([entry.item for entry in batch.entries])
        except VisiongateError as error:
            return [error] * count
        except Exception:
            logger.exception("a batch of %d failed", count)
            return [InternalError() for _ in range(count)]
        if len(results) != count:
            logger.error("a batch of %d was answered with %d results", count, len(results))
            return [InternalError() for _ in range(count)]
        return results
