"""How many requests one process works on at a time, and who may still come when there are many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded
from serving.metrics import Metrics


class Crowd:
    """At most `limit` requests; each priority leaves an eighth of the places to each that is more urgent.

    So a flood of the least urgent, however long they take, leaves some for who is not known yet.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._present = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def refuse_if_full(self, *, priority: int = 1) -> None:
        """Of who has joined. Raises Overloaded."""
        if self._present > self._limit - (priority - 1) * (self._limit // 8):
            raise Overloaded

    def _count(self, change: int) -> None:
        self._present += change
        self._metrics.requests_in_flight.set(self._present)
