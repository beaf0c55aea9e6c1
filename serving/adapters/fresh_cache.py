"""Answers of a slower place, kept for a short while, or longer where it is known that they still hold."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.errors import Overloaded
from serving.ports import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """asked_at: on `Clock.monotonic`'s line, before the question left, so age is never understated."""

    value: V
    asked_at: float


class FreshCache(Generic[K, V]):
    """The `max_entries` answers used last, none of them `max_age_seconds` old when it is given out.

    The age counts from the moment at which the answer was asked for, or was last confirmed, if later. Nothing
    confirms an answer for longer than `max_confirmed_seconds`. Askers of one missing key share one `load`,
    which goes on when an asker leaves.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[Answer[V]]],
        *,
        clock: Clock,
        max_age_seconds: float,
        max_confirmed_seconds: float,
        max_entries: int,
        max_loads: int,
        timeout_seconds: float,
    ) -> None:
        self._load = load
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._max_confirmed_seconds = max_confirmed_seconds
        self._max_entries = max_entries
        self._max_loads = max_loads
        self._timeout_seconds = timeout_seconds
        self._answers: OrderedDict[K, Answer[V]] = OrderedDict()
        self._loads: dict[K, asyncio.Task[Answer[V]]] = {}
        self._running: set[asyncio.Task[Answer[V]]] = set()
        self._confirmed_at = -math.inf

    async def get(self, key: K) -> V:
        """Raises what `load` raises, TimeoutError, and Overloaded when too many keys are being loaded."""
        kept = self._answers.get(key)
        if kept is not None and self._is_fresh(kept, confirmed_at=self._confirmed_at):
            self._answers.move_to_end(key)
            return kept.value
        async with asyncio.timeout(self._timeout_seconds):
            loaded = await self._join_load(key)
            # A slow load that others had begun may end with an answer that is too old by now. What confirms
            # kept answers says nothing of it: it may have been forgotten on its way.
            while not self._is_fresh(loaded):
                loaded = await self._join_load(key)
        return loaded.value

    def confirm(self, moment: float) -> None:
        """Every kept answer still held at that moment: its question would have got the same."""
        self._confirmed_at = max(self._confirmed_at, moment)

    def confirm_on(self, moment: float) -> None:
        """The same, by somebody who only knows of the time since the last confirmation: not over a gap in
        which answers have become too old.
        """
        if moment - self._confirmed_at < self._max_age_seconds:
            self.confirm(moment)

    def forget(self, is_concerned: Callable[[V], bool]) -> None:
        """Ask for these answers anew; those under way, who may be among them, are given to nobody new."""
        for key in [key for key, answer in self._answers.items() if is_concerned(answer.value)]:
            del self._answers[key]
        self._loads.clear()

    async def close(self) -> None:
        loads = list(self._running)
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        self._answers.clear()

    def _is_fresh(self, answer: Answer[V], *, confirmed_at: float = -math.inf) -> bool:
        held_at = min(max(answer.asked_at, confirmed_at), self._confirmed_until(answer))
        return self._clock.monotonic() - held_at < self._max_age_seconds

    def _confirmed_until(self, answer: Answer[V]) -> float:
        return answer.asked_at + self._max_confirmed_seconds - self._max_age_seconds

    async def _join_load(self, key: K) -> Answer[V]:
        task = self._loads.get(key)
        if task is None:
            if len(self._running) >= self._max_loads:
                raise Overloaded("Too many API keys are being looked up.")
            task = asyncio.create_task(self._load_and_keep(key))
            self._loads[key] = task
            self._running.add(task)
            task.add_done_callback(self._end)
        return await asyncio.shield(task)

    async def _load_and_keep(self, key: K) -> Answer[V]:
        this = asyncio.current_task()
        try:
            answer = await self._load(key)
        finally:
            was_forgotten = self._loads.get(key) is not this
            if not was_forgotten:
                del self._loads[key]
        if not was_forgotten:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            if len(self._answers) > self._max_entries:
                self._answers.popitem(last=False)
        return answer

    def _end(self, task: asyncio.Task[Answer[V]]) -> None:
        self._running.discard(task)
        # Every asker may have left; asyncio would then report the failure as forgotten.
        if not task.cancelled():
            task.exception()
