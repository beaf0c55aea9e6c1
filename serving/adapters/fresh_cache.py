"""Answers of a slower place, kept for a short while."""

from __future__ import annotations

import asyncio
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

    Askers of one missing key share one `load`, which goes on when an asker leaves.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[Answer[V]]],
        *,
        clock: Clock,
        max_age_seconds: float,
        max_entries: int,
        max_loads: int,
        timeout_seconds: float,
    ) -> None:
        self._load = load
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._max_entries = max_entries
        self._max_loads = max_loads
        self._timeout_seconds = timeout_seconds
        self._answers: OrderedDict[K, Answer[V]] = OrderedDict()
        self._loads: dict[K, asyncio.Task[Answer[V]]] = {}

    async def get(self, key: K) -> V:
        """Raises what `load` raises, TimeoutError, and Overloaded when too many keys are being loaded."""
        kept = self._answers.get(key)
        if kept is not None and self._is_fresh(kept):
            self._answers.move_to_end(key)
            return kept.value
        async with asyncio.timeout(self._timeout_seconds):
            loaded = await self._join_load(key)
            # A slow load that others had begun may end with an answer that is too old by now.
            while not self._is_fresh(loaded):
                loaded = await self._join_load(key)
        return loaded.value

    async def close(self) -> None:
        loads = list(self._loads.values())
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        self._answers.clear()

    def _is_fresh(self, answer: Answer[V]) -> bool:
        return self._clock.monotonic() - answer.asked_at < self._max_age_seconds

    async def _join_load(self, key: K) -> Answer[V]:
        task = self._loads.get(key)
        if task is None:
            if len(self._loads) >= self._max_loads:
                raise Overloaded("Too many API keys are being looked up.")
            task = asyncio.create_task(self._load_and_keep(key))
            self._loads[key] = task
            task.add_done_callback(_mark_retrieved)
        return await asyncio.shield(task)

    async def _load_and_keep(self, key: K) -> Answer[V]:
        try:
            answer = await self._load(key)
        finally:
            del self._loads[key]
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)
        return answer


def _mark_retrieved(task: asyncio.Task[Answer[V]]) -> None:
    # Every asker may have left; asyncio would then report the failure as forgotten.
    if not task.cancelled():
        task.exception()
