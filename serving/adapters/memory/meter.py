"""Usage for one gateway process: running totals and the latest events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from serving.adapters.memory.admission import InMemoryAdmission
from serving.domain.inference import RenderedAnswer
from serving.domain.usage import UsageEvent
from serving.ports import Reservation

MAX_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class MeterTotals:
    """Sums over the answers of one key and model."""

    requests: int = 0
    pictures: int = 0
    pixels: int = 0
    received_bytes: int = 0
    inference_microseconds: int = 0

    def plus(self, event: UsageEvent) -> MeterTotals:
        return MeterTotals(
            self.requests + 1,
            self.pictures + event.pictures,
            self.pixels + event.pixels,
            self.received_bytes + event.received_bytes,
            self.inference_microseconds + event.inference_microseconds,
        )


class InMemoryMeter:
    """`UsageMeter` that forgets with its process, for reservations of an `InMemoryAdmission`.

    A repeated event is known by its id among the `max_events` latest; totals are one row a key and model.
    """

    def __init__(self, admission: InMemoryAdmission, *, max_events: int = MAX_EVENTS) -> None:
        self._admission = admission
        self._max_events = max_events
        self._events: OrderedDict[str, UsageEvent] = OrderedDict()
        self._totals: dict[tuple[str, str], MeterTotals] = {}

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """Besides the port's errors, IdempotencyKeyInUse where the lease had lapsed, and another request has
        taken the client's key over."""
        if event.request_id in self._events:
            return
        self._admission.settle(event, reservation, answer)
        self._events[event.request_id] = event
        if len(self._events) > self._max_events:
            self._events.popitem(last=False)
        self._totals[event.key_id, event.deployment] = self.totals(event.key_id, event.deployment).plus(event)

    def recent(self) -> Sequence[UsageEvent]:
        """Oldest first."""
        return tuple(self._events.values())

    def totals(self, key_id: str, model: str) -> MeterTotals:
        return self._totals.get((key_id, model), MeterTotals())
