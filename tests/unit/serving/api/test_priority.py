"""What a tier's priority is worth to its requests, on their whole way from the door to the model.

Nothing is timed: a flood of free requests stands at a gate, or wherever else it fills all there is, and an
enterprise one is answered meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from serving.api import idempotency_field, request_forms
from tests.support.gate import Gate
from tests.support.problems import assert_problem
from tests.support.tiers import make_tier
from tests.support.waiting import eventually
from tests.support.world import MAX_BODY_BYTES, MAX_REQUESTS, World, running_world, three_anchors

FREE = make_tier(name="free", priority=3)
ENTERPRISE = make_tier(name="enterprise", priority=1)
Work = Callable[[bytes], dict[str, Any]]
PATIENCE_SECONDS = 10


class Flooded:
    """Free requests send what is white, which waits at the gate; the enterprise's is black and does not."""

    def __init__(self, world: World, gate: Gate) -> None:
        self.world = world
        self.gate = gate
        self._free = world.bearer(tier="free")
        self._enterprise = world.bearer(tier="enterprise")

    def present(self) -> float | None:
        return self.world.metrics.registry.get_sample_value("visiongate_requests_in_flight")

    def free(self, picture: bytes) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self._post(self._free, picture))

    async def enterprise(self, picture: bytes) -> httpx.Response:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._post(self._enterprise, picture)

    async def _post(self, caller: dict[str, str], picture: bytes) -> httpx.Response:
        headers = {**caller, "Content-Type": "image/jpeg"}
        return await self.world.client.post("/v1/infer/shapes", content=picture, headers=headers)


@asynccontextmanager
async def flooded(**terms: Any) -> AsyncIterator[Flooded]:
    gate = Gate(three_anchors)

    def model(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (gate.model if batch_nhwc.max() > 200 else three_anchors)(batch_nhwc)

    async with running_world(FREE, ENTERPRISE, model=model, **terms) as world:
        try:
            yield Flooded(world, gate)
        finally:
            gate.opened.set()


async def until(is_so: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(eventually, is_so, within_seconds=PATIENCE_SECONDS)


async def test_free_requests_leave_places_and_a_batch_to_the_enterprise(jpeg: bytes, dark_png: bytes) -> None:
    free_places = MAX_REQUESTS - 2 * (MAX_REQUESTS // 8)
    async with flooded() as flood:
        free = [flood.free(jpeg) for _ in range(free_places)]
        await until(lambda: flood.present() == free_places)
        await flood.gate.reached()

        one_too_many = await asyncio.wait_for(flood.free(jpeg), PATIENCE_SECONDS)
        urgent = await flood.enterprise(dark_png)
        answered_meanwhile = [task for task in free if task.done()]
        asked_meanwhile = list(flood.world.backend.priorities)
        flood.gate.opened.set()
        answers = await asyncio.gather(*free)

    assert_problem(one_too_many, 503, "overloaded")
    assert urgent.status_code == 200
    assert answered_meanwhile == []
    assert asked_meanwhile == [3, 1]
    assert set(flood.world.backend.priorities[2:]) == {3}
    assert [answer.status_code for answer in answers] == [200] * free_places


async def test_where_the_queue_is_full_the_enterprise_takes_a_free_ones_place(
    jpeg: bytes, dark_png: bytes
) -> None:
    async with flooded(max_queued_pictures=1) as flood:
        first = flood.free(jpeg)
        await flood.gate.reached()
        (refused,), (waiting,) = await asyncio.wait(
            [flood.free(jpeg), flood.free(jpeg)],
            timeout=PATIENCE_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        urgent = await flood.enterprise(dark_png)
        displaced = await asyncio.wait_for(waiting, PATIENCE_SECONDS)
        flood.gate.opened.set()
        answered = await first

    assert_problem(refused.result(), 503, "overloaded")
    assert urgent.status_code == 200
    assert_problem(displaced, 503, "overloaded")
    assert answered.status_code == 200


async def test_free_requests_leave_bytes_of_bodies_to_the_enterprise(jpeg: bytes, dark_png: bytes) -> None:
    large = jpeg.ljust(MAX_BODY_BYTES * 3 // 4 - 1, b"\0")
    async with flooded() as flood:
        free = [flood.free(large) for _ in range(2)]
        await until(lambda: flood.world.held_bytes.held == 2 * len(large))

        small_bytes = len(large) // 8
        one_too_many = await asyncio.wait_for(flood.free(jpeg.ljust(small_bytes, b"\0")), PATIENCE_SECONDS)
        urgent = await flood.enterprise(dark_png.ljust(small_bytes, b"\0"))
        flood.gate.opened.set()
        answers = await asyncio.gather(*free)

    assert_problem(one_too_many, 503, "overloaded")
    assert urgent.status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200]


def in_json(picture: bytes) -> dict[str, Any]:
    return {
        "content": orjson.dumps({"image": b64encode(picture).decode(), "model": "shapes"}),
        "headers": {"Content-Type": "application/json"},
    }


def with_a_name(picture: bytes) -> dict[str, Any]:
    return {"content": picture, "headers": {"Content-Type": "image/jpeg", "Idempotency-Key": '"a"'}}


@pytest.fixture(params=[in_json, with_a_name], ids=["parsed", "hashed"])
def work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What a picture is sent as, so that a thread has to look at the body before anything else is done."""
    monkeypatch.setattr(request_forms, "LARGE_BODY_BYTES", 0)
    monkeypatch.setattr(idempotency_field, "HASHED_AT_ONCE_BYTES", 0)
    sent: Work = request.param
    return sent


async def post(world: World, tier: str, work: dict[str, Any]) -> httpx.Response:
    headers = {**world.bearer(tier=tier, models=["shapes"]), **work["headers"]}
    return await world.client.post("/v1/infer", content=work["content"], headers=headers)


async def test_an_urgent_body_is_read_before_free_ones(work: Work, jpeg: bytes) -> None:
    """Of one thread, which is busy; then free bodies and, behind the urgent one, a job that lasts."""
    began, ended = threading.Event(), threading.Event()
    async with running_world(FREE, ENTERPRISE) as world:
        first = asyncio.create_task(world.body_threads.run(3, began.wait, PATIENCE_SECONDS))
        free = [asyncio.create_task(post(world, "free", work(jpeg))) for _ in range(3)]
        await until(lambda: world.held_bytes.held == 3 * len(work(jpeg)["content"]))
        between = asyncio.create_task(world.body_threads.run(2, ended.wait, PATIENCE_SECONDS))
        urgent = asyncio.create_task(post(world, "enterprise", work(jpeg)))
        await until(lambda: world.held_bytes.held == 4 * len(work(jpeg)["content"]))

        began.set()
        answered = await asyncio.wait_for(urgent, PATIENCE_SECONDS)
        answered_before = [task for task in free if task.done()]
        ended.set()
        answers = await asyncio.gather(*free)
        await asyncio.gather(first, between)

    assert answered.status_code == 200
    assert answered_before == []
    assert [answer.status_code for answer in answers] == [200] * 3


async def test_a_body_that_no_thread_looks_at_in_time_has_timed_out(work: Work, jpeg: bytes) -> None:
    let = threading.Event()
    async with running_world(FREE, request_timeout_seconds=0.1) as world:
        busy = asyncio.create_task(world.body_threads.run(1, let.wait, PATIENCE_SECONDS))
        late = await asyncio.wait_for(post(world, "free", work(jpeg)), PATIENCE_SECONDS)
        let.set()
        await busy

    assert_problem(late, 504, "timeout")
    assert not world.meter.recent()
    assert world.held_bytes.held == 0
