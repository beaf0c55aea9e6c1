"""What a lane does with memory that is lent to it; everything else is seen through the API's tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from serving.adapters.memory.backend import InMemoryBackend
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.contract import ModelContract
from serving.metrics import Metrics
from tests.support import world

CONTRACT = world.make_contract()


class LendingBackend(InMemoryBackend):
    """Counts the buffers that are out."""

    lent = 0

    @contextlib.contextmanager
    def batch_buffer(self, contract: ModelContract, pictures: int) -> Iterator[NDArray[np.uint8]]:
        with super().batch_buffer(contract, pictures) as batch_nhwc:
            self.lent += 1
            try:
                yield batch_nhwc
            finally:
                self.lent -= 1


class GatedThreads(ThreadPoolExecutor):
    """Begins work, and goes on with it once it is let."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun = 0
        self.passes = threading.Semaphore(0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def gated() -> Any:
            self.begun += 1
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
            threads=threads,
            clock=clock,
            metrics=Metrics(CollectorRegistry()),
        )
        try:
            picture = world.encode(np.zeros((8, 8, 3), np.uint8))
            client = asyncio.create_task(
                detector.detect(picture, CONTRACT.options(), deadline=clock.monotonic() + 30)
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


async def a_moment() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await a_moment()
