"""What every InferenceBackend promises, of the one in memory and of the one on a real Triton, which is given
its pictures in messages or in shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.adapters.memory.backend import InMemoryBackend
from serving.adapters.memory.clock import ManualClock
from serving.adapters.shared_memory import SharedSlots
from serving.adapters.triton import TritonBackend
from serving.domain.contract import ModelContract
from serving.errors import BackendUnavailable, DeadlineExceeded, OperatorError, VersionGone
from serving.ports import InferenceBackend, InferenceOutput
from serving.triton.launcher import TritonServer
from tests.support import onnx_models

CONTRACT = onnx_models.probe_contract()
UNKNOWN = onnx_models.probe_contract("unknown")
SECOND = CONTRACT.model_copy(update={"model_info": CONTRACT.model_info.model_copy(update={"version": "2"})})
BRIGHT = 255  # a batch that begins with it takes about a second; see `onnx_models.MEAN_OF_EACH`


def pictures(*levels: int) -> NDArray[np.uint8]:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def mean_of_each(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`onnx_models.MEAN_OF_EACH` in NumPy, with its slowness."""
    total = 0
    for step in range(int(batch_nhwc.flat[0]) * 100_000):
        total += step
    return np.tile(batch_nhwc.mean(axis=(1, 2, 3), dtype=np.float32)[:, None, None], (1, 5, 1))


async def infer(
    backend: InferenceBackend, contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float
) -> InferenceOutput:
    """As the gateway does it: the batch is made where the backend wants it."""
    with backend.batch_buffer(contract, len(batch_nhwc)) as buffer:
        buffer[:] = batch_nhwc
        return await backend.infer(contract, buffer, deadline=deadline, priority=1)


@pytest.fixture(params=["memory", "triton", "triton_shared_memory"])
async def backend(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[InferenceBackend]:
    made: InferenceBackend
    if request.param == "memory":
        made = InMemoryBackend(mean_of_each, clock)
        made.broken[UNKNOWN.name] = "it is not there"
        await made.load(CONTRACT)
    else:
        server: TritonServer = request.getfixturevalue("tiny_triton")
        slots = SharedSlots(slots=3, slot_bytes=4 * 4 * 4 * 3) if "shared" in request.param else None
        made = TritonBackend(server.grpc_url, clock, shared_memory=slots)
    yield made
    await made.close()


@pytest.fixture
def within(clock: ManualClock) -> Callable[[float], float]:
    return lambda seconds: clock.monotonic() + seconds


async def test_a_batch_is_answered_in_order_with_the_model_version(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    output = await infer(backend, CONTRACT, pictures(0, 3, 1, 2), deadline=within(30))

    assert output.tensor.dtype == np.float32
    assert output.tensor.shape == (4, 5, 1)
    np.testing.assert_array_equal(output.tensor[:, 0, 0], [0, 3, 1, 2])
    assert output.model_version == "1"


@pytest.mark.parametrize("count", [0, 1, 4, 5])
async def test_a_batch_is_made_in_an_array_of_the_models_shape(backend: InferenceBackend, count: int) -> None:
    with backend.batch_buffer(CONTRACT, count) as buffer:
        assert buffer.shape == (count, 4, 4, 3)
        assert buffer.dtype == np.uint8
        assert buffer.flags.c_contiguous
        assert buffer.flags.writeable


async def test_buffers_at_once_share_nothing(backend: InferenceBackend) -> None:
    with contextlib.ExitStack() as stack:
        buffers = [stack.enter_context(backend.batch_buffer(CONTRACT, 1)) for _ in range(5)]

        assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(buffers, 2))


async def test_an_answer_outlives_the_batch_it_is_of(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    first = await infer(backend, CONTRACT, pictures(0, 8), deadline=within(30))
    await infer(backend, CONTRACT, pictures(0, 9), deadline=within(30))

    assert first.tensor[1].tolist() == [[8.0]] * 5


async def test_a_batch_need_not_be_made_in_a_buffer(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    output = await backend.infer(CONTRACT, pictures(0, 5), deadline=within(30), priority=1)

    np.testing.assert_array_equal(output.tensor[:, 0, 0], [0, 5])


async def test_a_batch_need_not_be_contiguous(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    wide = np.zeros((2, 4, 8, 3), np.uint8)
    wide[1, :, ::2] = 7

    output = await backend.infer(CONTRACT, wide[:, :, ::2], deadline=within(30), priority=1)

    np.testing.assert_array_equal(output.tensor[:, 0, 0], [0, 7])


async def test_the_answer_cannot_be_written_to(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    output = await infer(backend, CONTRACT, pictures(0), deadline=within(30))

    with pytest.raises(ValueError, match="read-only"):
        output.tensor[0] = 1


async def test_calls_at_once_get_each_its_own_answer(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    async def patiently(level: int) -> float:
        output = await infer(backend, CONTRACT, pictures(0, level), deadline=within(30))
        return float(output.tensor[1, 0, 0])

    answers = await asyncio.gather(*(patiently(level) for level in range(20)))

    assert answers == list(range(20))


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_deadline_that_has_passed_is_not_even_tried(
    backend: InferenceBackend, within: Callable[[float], float], seconds: float
) -> None:
    with pytest.raises(DeadlineExceeded):
        await infer(backend, UNKNOWN, pictures(0), deadline=within(seconds))


async def test_a_deadline_ends_a_slow_call(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    with pytest.raises(DeadlineExceeded):
        await infer(backend, CONTRACT, pictures(BRIGHT), deadline=within(0.1))


@pytest.mark.parametrize("contract", [UNKNOWN, SECOND])
async def test_what_the_server_has_not_loaded_is_gone(
    backend: InferenceBackend, within: Callable[[float], float], contract: ModelContract
) -> None:
    with pytest.raises(VersionGone) as caught:
        await infer(backend, contract, pictures(0), deadline=within(30))

    assert str(caught.value) == "No inference server is ready for this model."


async def test_readiness_is_told_of_each_model(backend: InferenceBackend) -> None:
    assert await backend.is_ready(CONTRACT)
    assert not await backend.is_ready(UNKNOWN)


async def test_readiness_is_told_of_each_version(backend: InferenceBackend) -> None:
    assert await backend.is_ready(CONTRACT)
    assert not await backend.is_ready(SECOND)


async def test_loading_what_is_loaded_disturbs_no_request(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    running = asyncio.create_task(infer(backend, CONTRACT, pictures(BRIGHT // 2), deadline=within(30)))

    for _ in range(3):
        await backend.load(CONTRACT)

    assert (await running).tensor.shape == (1, 5, 1)


async def test_loading_what_is_not_there_says_so(backend: InferenceBackend) -> None:
    with pytest.raises((OperatorError, BackendUnavailable)):
        await backend.load(UNKNOWN)


async def test_unloading_what_is_not_there_is_no_trouble(backend: InferenceBackend) -> None:
    await backend.unload(UNKNOWN.name)


async def test_cancelling_the_caller_cancels_the_call(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    call = asyncio.create_task(infer(backend, CONTRACT, pictures(BRIGHT), deadline=within(30)))
    await asyncio.wait([call], timeout=0.1)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    output = await infer(backend, CONTRACT, pictures(0), deadline=within(30))
    assert output.tensor.shape == (1, 5, 1)


async def test_once_closed_it_serves_nobody(
    backend: InferenceBackend, within: Callable[[float], float]
) -> None:
    await backend.close()

    assert not await backend.is_ready(CONTRACT)
    with pytest.raises(BackendUnavailable) as caught:
        await infer(backend, CONTRACT, pictures(0), deadline=within(30))
    assert not isinstance(caught.value, VersionGone)


def test_the_model_in_memory_answers_as_the_one_in_onnx_does() -> None:
    batch: Any = np.random.default_rng(0).integers(0, 3, (3, 4, 4, 3), np.uint8)

    np.testing.assert_allclose(mean_of_each(batch)[:, 4, 0], batch.reshape(3, -1).mean(axis=1), rtol=1e-6)
