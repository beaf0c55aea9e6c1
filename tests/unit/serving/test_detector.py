"""What a lane does with memory that is lent to it, and with priorities; all else is in the API's tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from serving.adapters.memory.backend import InMemoryBackend, Model
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.contract import ModelContract
from serving.metrics import Metrics
from serving.ports import Clock, InferenceOutput
from serving.threads import PriorityThreads
from serving.vision.decode import decode_rgb
from tests.support import world

CONTRACT = world.make_contract()


class LendingBackend(InMemoryBackend):
    """Counts the buffers that are out, and how many pictures it was asked with which priority."""

    def __init__(self, run: Model, clock: Clock) -> None:
        super().__init__(run, clock)
        self.lent = 0
        self.pictures: Counter[int] = Counter()

    @contextlib.contextmanager
    def batch_buffer(self, contract: ModelContract, pictures: int) -> Iterator[NDArray[np.uint8]]:
        with super().batch_buffer(contract, pictures) as batch_nhwc:
            self.lent += 1
            try:
                yield batch_nhwc
            finally:
                self.lent -= 1

    async def infer(
        self, contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float, priority: int
    ) -> InferenceOutput:
        self.pictures[priority] += len(batch_nhwc)
        return await super().infer(contract, batch_nhwc, deadline=deadline, priority=priority)


class GatedThreads(ThreadPoolExecutor):
    """Begins work, and goes on with it once it is let."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun = 0
        self.decoded: list[bytes] = []
        self.passes = threading.Semaphore(0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def gated() -> Any:
            self.begun += 1
            if isinstance(fn, partial) and fn.func is decode_rgb:
                self.decoded.append(fn.args[0])
            assert self.passes.acquire(timeout=30)
            return fn(*args, **kwargs)

        return super().submit(gated)


async def test_a_buffer_is_not_given_back_while_a_thread_may_still_write_into_it() -> None:
    clock = SystemClock()
    backend = LendingBackend(world.three_anchors, clock)
    await backend.load(CONTRACT)
    with GatedThreads() as threads:
        detector = Detector(
            CONTRACT,
            backend=backend,
            limits=DetectorLimits(4, 1, 8, world.MAX_PIXELS),
            decoded_pixels=Budget(world.MAX_PIXELS),
            threads=PriorityThreads(threads, 1),
            clock=clock,
            metrics=Metrics(CollectorRegistry()),
        )
        try:
            picture = world.encode(np.zeros((8, 8, 3), np.uint8))
            client = asyncio.create_task(
                detector.detect(picture, CONTRACT.options(), deadline=clock.monotonic() + 30, priority=1)
            )
            threads.passes.release()  # to decode
            await until(lambda: threads.begun == 2)  # it letterboxes
            assert backend.lent == 1

            client.cancel()
            await asyncio.wait([client])
            await a_moment()
            assert backend.lent == 1

            threads.passes.release()
            await until(lambda: backend.lent == 0)
        finally:
            threads.passes.release(2)
            await detector.close()


@pytest.mark.parametrize("room_for", [1, 4], ids=["they wait for memory", "they wait for the thread"])
async def test_an_urgent_picture_is_the_next_to_be_decoded(room_for: int) -> None:
    clock = SystemClock()
    backend = LendingBackend(world.three_anchors, clock)
    await backend.load(CONTRACT)
    free = [world.encode(np.full((8, 8, 3), level, np.uint8)) for level in (0, 50, 100)]
    urgent = world.encode(np.full((8, 8, 3), 200, np.uint8))
    with GatedThreads() as threads:
        detector = Detector(
            CONTRACT,
            backend=backend,
            limits=DetectorLimits(4, 1, 8, world.MAX_PIXELS),
            decoded_pixels=Budget(room_for * 8 * 8),
            threads=PriorityThreads(threads, 1),
            clock=clock,
            metrics=Metrics(CollectorRegistry()),
        )
        clients = []
        for picture, priority in ((free[0], 3), (free[1], 3), (free[2], 2), (urgent, 1)):
            detecting = detector.detect(
                picture, CONTRACT.options(), deadline=clock.monotonic() + 30, priority=priority
            )
            clients.append(asyncio.create_task(detecting))
            await until(lambda: threads.begun == 1)

        threads.passes.release(100)
        await asyncio.gather(*clients)
        await detector.close()

    assert threads.decoded == [free[0], urgent, free[2], free[1]]
    assert backend.pictures == {3: 2, 2: 1, 1: 1}


async def a_moment() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await a_moment()
