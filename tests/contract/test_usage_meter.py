"""Every form of `UsageMeter` records an answer once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import pytest

from serving.adapters.memory.clock import START
from serving.adapters.memory.meter import InMemoryMeter, UsageTotals
from serving.domain.usage import UsageEvent
from serving.ports import UsageMeter

EVENT = UsageEvent(
    request_id="request-0",
    key_id="key_a",
    user="ada",
    tier="pro",
    deployment="shapes",
    model_version="1",
    pictures=2,
    pixels=640 * 480 * 2,
    received_bytes=40_000,
    inference_seconds=0.5,
    answered_at=START,
)


class ReadableMeter(UsageMeter, Protocol):
    def totals(self, key_id: str, model: str) -> UsageTotals: ...


@pytest.fixture(params=[InMemoryMeter], ids=["memory"])
def meter(request: pytest.FixtureRequest) -> ReadableMeter:
    make: Callable[[], ReadableMeter] = request.param
    return make()


async def test_nothing_settled_is_nothing_owed(meter: ReadableMeter) -> None:
    assert meter.totals("key_a", "shapes") == UsageTotals()


async def test_one_answer_is_counted_in_every_unit(meter: ReadableMeter) -> None:
    await meter.settle(EVENT)

    assert meter.totals("key_a", "shapes") == UsageTotals(1, 2, 614_400, 40_000, 0.5)


async def test_the_same_request_is_settled_once(meter: ReadableMeter) -> None:
    await asyncio.gather(*(meter.settle(EVENT) for _ in range(200)))

    assert meter.totals("key_a", "shapes").requests == 1


async def test_two_hundred_at_once_are_all_there(meter: ReadableMeter) -> None:
    await asyncio.gather(*(meter.settle(replace(EVENT, request_id=f"request-{n}")) for n in range(200)))

    assert meter.totals("key_a", "shapes") == UsageTotals(200, 400, 200 * 614_400, 8_000_000, 100.0)


async def test_keys_and_models_are_kept_apart(meter: ReadableMeter) -> None:
    await meter.settle(EVENT)
    await meter.settle(replace(EVENT, request_id="request-1", key_id="key_b"))
    await meter.settle(replace(EVENT, request_id="request-2", model="faces", pictures=7))

    assert meter.totals("key_a", "shapes").pictures == 2
    assert meter.totals("key_b", "shapes").pictures == 2
    assert meter.totals("key_a", "faces").pictures == 7
