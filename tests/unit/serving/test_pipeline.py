"""The journey's promises about money: what is refused, fails or is abandoned costs nothing."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.domain.tenant import Tier
from tests.support.tiers import make_tier
from tests.support.world import encode, running_world, three_anchors

JPEG = {"Content-Type": "image/jpeg"}
WHITE = encode(np.full((64, 64, 3), 255, np.uint8))


@pytest.fixture
def tier() -> Tier:
    return make_tier(rate=1, burst=2, max_pictures=2)


async def test_a_failed_request_gives_its_tokens_back(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        bad = [
            (await world.client.post("/v1/infer", content=b"text", headers=headers)).status_code
            for _ in range(5)
        ]
        good = [
            (await world.client.post("/v1/infer", content=WHITE, headers=headers)).status_code
            for _ in range(3)
        ]

    assert bad == [422] * 5
    assert good == [200, 200, 429]


async def test_a_refusal_says_when_to_come_back_in_the_standard_words(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        for _ in range(3):
            refused = await world.client.post("/v1/infer", content=WHITE, headers=headers)

    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (429, "rate_limited")
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert 55 <= int(refused.headers["Retry-After"]) <= 60
    assert world.meter.totals(world.meter.recent()[0].key_id, "shapes").pictures == 2


async def test_a_list_takes_all_its_tokens_or_none(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = world.bearer(models=["shapes"])
        one = {"images": ["bad"]}
        two = {"images": ["bad", "bad"]}
        statuses = [
            (await world.client.post("/v1/infer", json=body, headers=headers)).status_code
            for body in (one, two, one, one)
        ]

    assert statuses == [200, 429, 200, 429]


async def test_a_client_that_leaves_is_not_billed_and_keeps_its_tokens(tier: Tier) -> None:
    reached, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        loop.call_soon_threadsafe(reached.set)
        gate.wait(10)
        return three_anchors(batch_nhwc)

    async with running_world(tier, model=slow) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        leaving = asyncio.create_task(world.client.post("/v1/infer", content=WHITE, headers=headers))
        await reached.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.set()
        statuses = [
            (await world.client.post("/v1/infer", content=WHITE, headers=headers)).status_code
            for _ in range(3)
        ]
        settled = len(world.meter.recent())

    assert statuses == [200, 200, 429]
    assert settled == 2


async def test_the_deadline_is_kept_while_the_server_dawdles(tier: Tier) -> None:
    gate = threading.Event()

    def stuck(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        gate.wait(10)
        return three_anchors(batch_nhwc)

    async with running_world(tier, model=stuck, request_timeout_seconds=0.2) as world:
        response = await world.client.post(
            "/v1/infer", content=WHITE, headers={**world.bearer(models=["shapes"]), **JPEG}
        )
        gate.set()

    assert (response.status_code, response.json()["code"]) == (504, "timeout")
    assert not world.meter.recent()
