"""An urgent request overtakes a flood of others on its whole way: in our own lines, and in a real Triton's.

Nothing is timed. A slow request occupies the model's only instance for about a second; meanwhile everybody
else queues up, as Triton's own count of those who wait confirms; then the order of the answers is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.adapters.triton import TritonBackend
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.contract import ModelContract
from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.ports import InferenceOutput
from serving.threads import PriorityThreads
from serving.triton.launcher import TritonServer
from tests.conftest import ONE_CPU_INSTANCE
from tests.support import onnx_models
from tests.support.triton_stub import stub_of
from tests.support.waiting import eventually
from tests.support.world import encode

CLOCK = SystemClock()
QUEUE_SIZE = 8
PRIORITIES = "priority_levels: 3 default_priority_level: 3"
SLOW, QUICK = 255, 1  # see `onnx_models.MEAN_OF_EACH`
MAX_PIXELS = 1_000_000


def config(*, max_batch_size: int, priorities: str = PRIORITIES) -> str:
    one = "" if max_batch_size else "1, "
    return f"""
        max_batch_size: {max_batch_size}
        input [{{ name: "images" data_type: TYPE_UINT8 dims: [{one}4, 4, 3] }}]
        output [{{ name: "predictions" data_type: TYPE_FP32 dims: [{one}5, 1] }}]
        dynamic_batching {{ {priorities} default_queue_policy {{
            timeout_action: REJECT allow_timeout_override: true
            default_timeout_microseconds: 30000000 max_queue_size: {QUEUE_SIZE} }} }}
    """


@pytest.fixture
async def backend(tiny_triton: TritonServer) -> AsyncIterator[TritonBackend]:
    made = TritonBackend(tiny_triton.grpc_url, CLOCK)
    yield made
    await made.close()


Load = Callable[[str, str], Awaitable[ModelContract]]


@pytest.fixture
def load(backend: TritonBackend, tiny_repository: Path) -> Load:
    async def load(name: str, text: str) -> ModelContract:
        onnx_models.write_entry(tiny_repository, name, onnx_models.MEAN_OF_EACH, ONE_CPU_INSTANCE + text)
        contract = onnx_models.probe_contract(name)
        await backend.load(contract)
        return contract

    return load


class Race:
    """Notes who is answered, in order, and looks at the model's queue in Triton meanwhile."""

    def __init__(self, model: str, server: TritonServer) -> None:
        self.answered: list[str] = []
        self._model = model
        self._stub = stub_of(server, model)
        self._metrics_url = server.metrics_url
        self._runners: list[asyncio.Task[None]] = []

    def enter(self, name: str, request: Awaitable[object]) -> None:
        async def run() -> None:
            await request
            self.answered.append(name)

        self._runners.append(asyncio.create_task(run()))

    async def begin(self, name: str, request: Awaitable[object]) -> None:
        """Enter the slow one, and return once the model has worked on it for a twentieth of its time."""
        before = self._stub.cpu_times().user
        self.enter(name, request)
        assert await asyncio.to_thread(eventually, lambda: self._stub.cpu_times().user > before + 0.05)

    async def until_there_wait(self, count: int) -> None:
        assert await asyncio.to_thread(eventually, lambda: self._waiting() == count)

    async def over(self) -> list[str]:
        await asyncio.gather(*self._runners)
        return self.answered

    def _waiting(self) -> float:
        exposition = httpx.get(self._metrics_url, trust_env=False, timeout=5).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(exposition)
            if family.name == "nv_inference_pending_request_count"
            for sample in family.samples
            if sample.labels["model"] == self._model
        )


def picture(level: int) -> NDArray[np.uint8]:
    return np.full((1, 4, 4, 3), level, np.uint8)


def asked(
    backend: TritonBackend, contract: ModelContract, level: int, priority: int
) -> Awaitable[InferenceOutput]:
    return backend.infer(contract, picture(level), deadline=CLOCK.monotonic() + 30, priority=priority)


@pytest.mark.parametrize("max_batch_size", [1, 0])
async def test_in_tritons_queue_the_urgent_are_answered_before_all_but_the_one_that_runs(
    backend: TritonBackend, tiny_triton: TritonServer, load: Load, max_batch_size: int
) -> None:
    """Also of a model that takes one picture at a time (0), whose requests Triton never joins."""
    contract = await load(f"levels_{max_batch_size}", config(max_batch_size=max_batch_size))
    race = Race(contract.name, tiny_triton)
    ask = partial(asked, backend, contract)

    await race.begin("running", ask(SLOW, 3))
    for number in range(QUEUE_SIZE):
        race.enter(f"free {number}", ask(QUICK, 3))
    race.enter("pro", ask(QUICK, 2))
    await race.until_there_wait(QUEUE_SIZE + 1)
    race.enter("enterprise", ask(QUICK, 1))

    answered = await race.over()

    assert answered[:3] == ["running", "enterprise", "pro"]
    assert sorted(answered[3:]) == [f"free {number}" for number in range(QUEUE_SIZE)]


async def test_a_queue_that_is_full_of_the_least_urgent_has_room_for_others(
    backend: TritonBackend, tiny_triton: TritonServer, load: Load
) -> None:
    contract = await load("bounded", config(max_batch_size=1))
    race = Race(contract.name, tiny_triton)
    ask = partial(asked, backend, contract)

    await race.begin("running", ask(SLOW, 3))
    for number in range(QUEUE_SIZE):
        race.enter(f"free {number}", ask(QUICK, 3))
    await race.until_there_wait(QUEUE_SIZE)
    with pytest.raises(Overloaded):
        await ask(QUICK, 3)
    with pytest.raises(Overloaded):
        await ask(QUICK, 4)  # beyond the levels: the default one, which is the least urgent
    race.enter("enterprise", ask(QUICK, 1))

    assert (await race.over())[:2] == ["running", "enterprise"]


async def test_a_model_without_priorities_answers_in_order_whatever_we_say(
    backend: TritonBackend, tiny_triton: TritonServer, load: Load
) -> None:
    contract = await load("plain", config(max_batch_size=1, priorities=""))
    race = Race(contract.name, tiny_triton)
    ask = partial(asked, backend, contract)

    await race.begin("0", ask(SLOW, 3))
    race.enter("1", ask(QUICK, 3))
    await race.until_there_wait(1)
    race.enter("2", ask(QUICK, 1))

    assert await race.over() == ["0", "1", "2"]


async def test_from_picture_to_answer_an_urgent_one_waits_for_the_batch_that_runs_and_no_other(
    backend: TritonBackend, tiny_triton: TritonServer, load: Load
) -> None:
    contract = await load("whole_way", config(max_batch_size=4))
    race = Race(contract.name, tiny_triton)
    with ThreadPoolExecutor(1) as executor:
        detector = Detector(
            contract,
            backend=backend,
            limits=DetectorLimits(4, 2, 64, MAX_PIXELS),
            decoded_pixels=Budget(MAX_PIXELS),
            threads=PriorityThreads(executor, 1),
            clock=CLOCK,
            metrics=Metrics(CollectorRegistry()),
        )

        def ask(level: int, priority: int) -> Awaitable[object]:
            data = encode(picture(level)[0], ".png")
            return detector.detect(
                data, contract.options(), deadline=CLOCK.monotonic() + 30, priority=priority
            )

        await race.begin("running", ask(SLOW, 3))
        for number in range(30):  # one batch of them goes to Triton, and the others wait here
            race.enter(f"free {number}", ask(QUICK, 3))
        await race.until_there_wait(1)
        race.enter("enterprise", ask(QUICK, 1))

        answered = await race.over()
        await detector.close()

    assert answered[:2] == ["running", "enterprise"]
    assert sorted(answered[2:]) == sorted(f"free {number}" for number in range(30))
