"""Bounds on what is held at a time: bytes of bodies, pixels of decoded pictures, places with threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serving.waiting_line import WaitingLine


@dataclass(frozen=True, eq=False, slots=True)
class _Turn:
    units: int
    priority: int
    came: asyncio.Future[None]


class Budget:
    """`limit` units shared by everyone on one event loop; served by priority (1 first), then by arrival.

    Whoever waits is overtaken only by the more urgent, however little others want. So under a load of urgent
    work that never ends, the least urgent waits until it gives up.
    """

    def __init__(self, limit: int, *, left_to_the_urgent: int = 0) -> None:
        """left_to_the_urgent: units that each priority leaves untaken for every one that is more urgent, so
        that it finds some, however long others hold theirs.
        """
        self._limit = limit
        self._left_to_the_urgent = left_to_the_urgent
        self._held = 0
        self._waiting: WaitingLine[_Turn] = WaitingLine()

    @property
    def held(self) -> int:
        return self._held

    def try_take(self, units: int, *, priority: int = 1) -> bool:
        """Take at once or not at all; never overtakes someone who waits."""
        if self._waiting or units > self._limit or not self._fits(units, priority):
            return False
        self._held += units
        return True

    async def take(self, units: int, *, priority: int) -> None:
        """Wait for `units`, which must not exceed the limit; who was cancelled has taken none."""
        if units > self._limit:
            raise ValueError(f"{units} units never fit a budget of {self._limit}")
        most_urgent = self._waiting.most_urgent
        overtakes = most_urgent is None or priority < most_urgent
        if overtakes and self._fits(units, priority):
            self._held += units
            return
        turn = _Turn(units, priority, asyncio.get_running_loop().create_future())
        self._waiting.add(turn, priority)
        try:
            # Cancelling the wait must not cancel the turn: `_leave` tells them apart.
            await asyncio.shield(turn.came)
        except asyncio.CancelledError:
            self._leave(turn)
            raise

    def give_back(self, units: int) -> None:
        self._held -= units
        while self._waiting and self._fits((turn := self._waiting.first()).units, turn.priority):
            self._waiting.pop_first()
            self._held += turn.units
            turn.came.set_result(None)

    @asynccontextmanager
    async def hold(self, units: int, *, priority: int) -> AsyncIterator[None]:
        """`take` for the block."""
        await self.take(units, priority=priority)
        try:
            yield
        finally:
            self.give_back(units)

    def _fits(self, units: int, priority: int) -> bool:
        """Alone, everybody does: whatever is within the limit has its turn."""
        left = self._left_to_the_urgent * (priority - 1)
        return self._held + units <= self._limit - left or not self._held

    def _leave(self, turn: _Turn) -> None:
        if self._waiting.discard(turn, turn.priority):
            self.give_back(0)  # whoever waited behind this one may fit now
        else:
            self.give_back(turn.units)  # the turn came in the same loop step as the cancellation
