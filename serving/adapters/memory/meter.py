"""Usage for one gateway process: running totals and the latest events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from serving.domain.inference import RenderedAnswer
from serving.domain.usage import UsageEvent
from serving.ports import Reservation

MAX_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over the answers of one key and model."""

    requests: int = 0
    pictures: int = 0
    pixels: int = 0
    received_bytes: int = 0
    inference_seconds: float = 0.0

    def plus(self, event: UsageEvent) -> UsageTotals:
        return UsageTotals(
            self.requests + 1,
            self.pictures + event.pictures,
            self.pixels + event.pixels,
            self.received_bytes + event.received_bytes,
            self.inference_seconds + event.inference_microseconds / 1_000_000,
        )


class InMemoryMeter:
    """`UsageMeter` that forgets with its process.

    A repeated event is known by its id among the `max_events` latest; totals are one row a key and model.
    """

    def __init__(self, *, max_events: int = MAX_EVENTS) -> None:
        self._max_events = max_events
        self._events: OrderedDict[str, UsageEvent] = OrderedDict()
        self._totals: dict[tuple[str, str], UsageTotals] = {}

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        if event.request_id in self._events:
            return
        self._events[event.request_id] = event
        if len(self._events) > self._max_events:
            self._events.popitem(last=False)
        self._totals[event.key_id, event.deployment] = self.totals(event.key_id, event.deployment).plus(event)

    def recent(self) -> Sequence[UsageEvent]:
        """Oldest first."""
        return tuple(self._events.values())

    def totals(self, key_id: str, model: str) -> UsageTotals:
        return self._totals.get((key_id, model), UsageTotals())
