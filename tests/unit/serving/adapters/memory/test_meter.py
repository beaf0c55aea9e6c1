"""The bounds of the in-memory form; what every form does is in `tests/contract`."""

from __future__ import annotations

from serving.adapters.memory.clock import START
from serving.adapters.memory.meter import InMemoryMeter
from serving.domain.usage import UsageEvent


def event(number: int) -> UsageEvent:
    return UsageEvent(
        request_id=f"request-{number}",
        key_id="key_a",
        user="ada",
        tier="pro",
        model="shapes",
        model_version="1",
        pictures=1,
        pixels=100,
        received_bytes=10,
        inference_seconds=0.25,
        answered_at=START,
    )


async def test_only_the_latest_events_are_kept_but_all_are_counted() -> None:
    meter = InMemoryMeter(max_events=3)
    for number in range(10):
        await meter.settle(event(number))

    assert meter.recent() == (event(7), event(8), event(9))
    assert meter.totals("key_a", "shapes").requests == 10


async def test_the_oldest_kept_event_is_still_known() -> None:
    meter = InMemoryMeter(max_events=3)
    for number in (0, 1, 2, 0):
        await meter.settle(event(number))

    assert meter.totals("key_a", "shapes").requests == 3
