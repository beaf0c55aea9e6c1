"""What every InferenceBackend promises, of the one on a real Triton and of the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.adapters.memory.backend import InMemoryBackend
from serving.adapters.memory.clock import ManualClock
from serving.adapters.triton import TritonBackend
from serving.errors import BackendUnavailable, DeadlineExceeded
from serving.ports import InferenceBackend
from serving.triton.launcher import TritonServer
from tests import onnx_models

CONTRACT = onnx_models.probe_contract()
UNKNOWN = onnx_models.probe_contract("unknown")
BRIGHT = 255  # a batch that begins with it takes about a second; see `onnx_models.MEAN_OF_EACH`


def pictures(*levels: int) -> NDArray[np.uint8]:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def mean_of_each(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`onnx_models.MEAN_OF_EACH` in NumPy, with its slowness."""
    total = 0
    for step in range(int(batch_nhwc.flat[0]) * 100_000):
        total += step
    return np.tile(batch_nhwc.mean(axis=(1, 2, 3), dtype=np.float32)[:, None, None], (1, 5, 1))


@pytest.fixture(params=["memory", "triton"])
async def backend(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[InferenceBackend]:
    made: InferenceBackend
    if request.param == "memory":
        made = InMemoryBackend(mean_of_each, clock)
        made.unavailable.add(UNKNOWN.name)
    else:
        server: TritonServer = request.getfixturevalue("tiny_triton")
        made = TritonBackend(server.grpc_url, clock)
    yield made
    await made.close()


@pytest.fixture
def within(clock: ManualClock) -> Callable[[float], float]:
    return lambda seconds: clock.monotonic() + seconds


async def test_a_batch_is_answered_in_order_with_the_model_version(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    output = await backend.infer(CONTRACT, pictures(0, 3, 1, 2), deadline=within(30))

    assert output.tensor.dtype == np.float32
    assert output.tensor.shape == (4, 5, 1)
    np.testing.assert_array_equal(output.tensor[:, 0, 0], [0, 3, 1, 2])
    assert output.model_version == "1"


async def test_a_batch_need_not_be_contiguous(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    wide = np.zeros((2, 4, 8, 3), np.uint8)
    wide[1, :, ::2] = 7

    output = await backend.infer(CONTRACT, wide[:, :, ::2], deadline=within(30))

    np.testing.assert_array_equal(output.tensor[:, 0, 0], [0, 7])


async def test_the_answer_cannot_be_written_to(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    output = await backend.infer(CONTRACT, pictures(0), deadline=within(30))

    with pytest.raises(ValueError, match="read-only"):
        output.tensor[0] = 1


async def test_calls_at_once_get_each_its_own_answer(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    async def patiently(level: int) -> float:
        output = await backend.infer(CONTRACT, pictures(0, level), deadline=within(30))
        return float(output.tensor[1, 0, 0])

    answers = await asyncio.gather(*(patiently(level) for level in range(20)))

    assert answers == list(range(20))


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_deadline_that_has_passed_is_not_even_tried(
    backend: InferenceBackend, within: Callable[[float], float], seconds: float
) -> None:
    with pytest.raises(DeadlineExceeded):
        await backend.infer(UNKNOWN, pictures(0), deadline=within(seconds))


async def test_a_deadline_ends_a_slow_call(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    with pytest.raises(DeadlineExceeded):
        await backend.infer(CONTRACT, pictures(BRIGHT), deadline=within(0.1))


async def test_a_model_that_is_not_there_is_unavailable(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        await backend.infer(UNKNOWN, pictures(0), deadline=within(30))

    assert str(caught.value) == "No inference server is ready for this model."


async def test_readiness_is_told_of_each_model(backend: InferenceBackend) -> None:
    assert await backend.is_ready(CONTRACT)
    assert not await backend.is_ready(UNKNOWN)


async def test_cancelling_the_caller_cancels_the_call(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    call = asyncio.create_task(backend.infer(CONTRACT, pictures(BRIGHT), deadline=within(30)))
    await asyncio.wait([call], timeout=0.1)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    output = await backend.infer(CONTRACT, pictures(0), deadline=within(30))
    assert output.tensor.shape == (1, 5, 1)


async def test_once_closed_it_serves_nobody(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    await backend.close()

    assert not await backend.is_ready(CONTRACT)
    with pytest.raises(BackendUnavailable):
        await backend.infer(CONTRACT, pictures(0), deadline=within(30))


def test_the_model_in_memory_answers_as_the_one_in_onnx_does() -> None:
    batch: Any = np.random.default_rng(0).integers(0, 3, (3, 4, 4, 3), np.uint8)

    np.testing.assert_allclose(mean_of_each(batch)[:, 4, 0], batch.reshape(3, -1).mean(axis=1), rtol=1e-6)
