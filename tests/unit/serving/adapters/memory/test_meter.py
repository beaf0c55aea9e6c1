"""The bounds of the in-memory form; what every form does is in `tests/contract`."""

from __future__ import annotations

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.adapters.memory.meter import InMemoryMeter, MeterTotals
from serving.domain.usage import UsageEvent
from serving.ports import Reservation
from tests.support.requests import ANSWER, admit, event_of, principal


async def settled(meter: InMemoryMeter, reservations: list[Reservation]) -> list[UsageEvent]:
    events = [event_of(reservation) for reservation in reservations]
    for event, reservation in zip(events, reservations, strict=True):
        await meter.settle(event, reservation, ANSWER)
    return events


async def test_only_the_latest_events_are_kept_but_all_are_counted() -> None:
    admission = InMemoryAdmission(ManualClock())
    meter = InMemoryMeter(admission, max_events=3)

    events = await settled(meter, [await admit(admission, principal()) for _ in range(10)])

    assert meter.recent() == tuple(events[-3:])
    assert meter.totals("key_a", "shapes").requests == 10


async def test_the_oldest_kept_event_is_still_known() -> None:
    admission = InMemoryAdmission(ManualClock())
    meter = InMemoryMeter(admission, max_events=3)
    reservations = [await admit(admission, principal()) for _ in range(3)]

    await settled(meter, [*reservations, reservations[0]])

    assert meter.totals("key_a", "shapes").requests == 3


async def test_totals_are_in_every_unit_and_by_model() -> None:
    admission = InMemoryAdmission(ManualClock())
    meter = InMemoryMeter(admission)

    await settled(meter, [await admit(admission, principal(), pictures=2) for _ in range(2)])

    assert meter.totals("key_a", "shapes") == MeterTotals(2, 4, 614_400, 80_000, 10_000)
    assert meter.totals("key_a", "faces") == MeterTotals()
