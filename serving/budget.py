"""Bounds on what is held in memory at a time: bytes of bodies, pixels of decoded pictures."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`limit` units shared by everyone on one event loop; who came first is served first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held(self) -> int:
        return self._held

    def try_take(self, units: int) -> bool:
        """Take at once or not at all; never overtakes someone who waits."""
        if self._waiting or self._held + units > self._limit:
            return False
        self._held += units
        return True

    def give_back(self, units: int) -> None:
        self._held -= units
        while self._waiting and self._held + self._waiting[0][0] <= self._limit:
            wanted, turn = self._waiting.popleft()
            self._held += wanted
            turn.set_result(None)

    @asynccontextmanager
    async def hold(self, units: int) -> AsyncIterator[None]:
        """Wait for `units`, which must not exceed the limit, and hold them for the block."""
        if units > self._limit:
            raise ValueError(f"{units} units never fit a budget of {self._limit}")
        if not self.try_take(units):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((units, turn))
            try:
                await asyncio.shield(
                    turn
                )  # cancelling the wait must not cancel the turn: `_leave` tells them apart
            except asyncio.CancelledError:
                self._leave(units, turn)
                raise
        try:
            yield
        finally:
            self.give_back(units)

    def _leave(self, units: int, turn: asyncio.Future[None]) -> None:
        if (units, turn) in self._waiting:
            self._waiting.remove((units, turn))
            self.give_back(0)  # whoever waited behind this one may fit now
        else:
            self.give_back(units)  # the turn came in the same loop step as the cancellation
