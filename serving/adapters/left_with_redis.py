"""What Redis has reserved for requests that failed while it was gone: given back when it is there again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from serving.errors import AccountsUnavailable
from serving.ports import Admission, Reservation

MAX_REQUESTS = 65_536
"""What is beyond that lapses by itself."""
AT_A_TIME = 64


class Watch(Protocol):
    """Who knows whether Redis can be relied on."""

    @property
    def in_fallback(self) -> bool: ...

    def failed(self, error: AccountsUnavailable) -> None:
        """A call has failed: from now on, `in_fallback`."""


class LeftWithRedis:
    """Belongs to one event loop."""

    def __init__(self, primary: Admission, watch: Watch) -> None:
        self._primary = primary
        self._watch = watch
        self._in_doubt: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._left: OrderedDict[tuple[str, str], Reservation] = OrderedDict()

    def is_under_way(self, key_id: str, request_id: str) -> None:
        """It is asked for again: what it is about to reserve is not to be given back."""
        self._left.pop((key_id, request_id), None)

    def doubt(self, key_id: str, request_id: str) -> None:
        """Redis may have admitted it, and has not said so."""
        self._in_doubt[key_id, request_id] = None
        if len(self._in_doubt) > MAX_REQUESTS:
            self._in_doubt.popitem(last=False)

    def is_in_doubt(self, key_id: str, request_id: str) -> bool:
        return (key_id, request_id) in self._in_doubt

    async def give_back(self, reservation: Reservation) -> None:
        """Now, or in fallback once that is over. Never raises."""
        name = reservation.key_id, reservation.request_id
        self._in_doubt.pop(name, None)
        if not self._watch.in_fallback:
            await self._primary.give_back(reservation)
        # Also where the trouble came with it: giving back twice is giving back once.
        if self._watch.in_fallback:
            self._left[name] = reservation
            if len(self._left) > MAX_REQUESTS:
                self._left.popitem(last=False)

    async def hand_over(self) -> None:
        """As far as Redis stays. Never raises."""
        while self._left and not self._watch.in_fallback:
            count = min(len(self._left), AT_A_TIME)
            some = [self._left.popitem(last=False)[1] for _ in range(count)]
            await asyncio.gather(*map(self.give_back, some))
