"""Shared memory with a real Triton: who registers, what happens when it forgets, refuses or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.adapters.memory.clock import ManualClock
from serving.adapters.shared_memory import SharedSlots
from serving.adapters.triton import TritonBackend
from serving.errors import BackendUnavailable, DeadlineExceeded
from serving.triton.launcher import TritonServer
from tests.conftest import START_TIMEOUT_SECONDS
from tests.support import onnx_models
from tests.support.ports import free_triton_ports

CONTRACT = onnx_models.probe_contract()
CLOCK = ManualClock()
PICTURE_BYTES = 4 * 4 * 3
LARGEST_BATCH = 4
REFUSAL = "Triton refuses shared memory"


@pytest.fixture
def slots() -> SharedSlots:
    """The backend's, which closes them."""
    return SharedSlots(slots=3, slot_bytes=LARGEST_BATCH * PICTURE_BYTES)


@pytest.fixture
async def backend(tiny_triton: TritonServer, slots: SharedSlots) -> AsyncIterator[TritonBackend]:
    made = TritonBackend(tiny_triton.grpc_url, CLOCK, shared_memory=slots)
    yield made
    await made.close()


async def mean_by_triton(backend: TritonBackend, level: int, *, pictures: int = 1) -> float:
    with backend.batch_buffer(CONTRACT, pictures) as batch_nhwc:
        batch_nhwc[:] = level
        batch_nhwc[0, 0, 0, 0] = 0
        output = await backend.infer(CONTRACT, batch_nhwc, deadline=CLOCK.monotonic() + 30, priority=1)
    return float(output.tensor[-1, 0, 0])


def expected_mean(level: int) -> float:
    return level * (PICTURE_BYTES - 1) / PICTURE_BYTES


def registered_regions(server: TritonServer) -> list[str]:
    status = httpx.get(f"{server.http_url}/v2/systemsharedmemory/status").raise_for_status()
    return [region["name"] for region in status.json()]


async def a_moment() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.02)


async def test_the_region_is_registered_with_the_first_request_and_not_after_the_end(
    backend: TritonBackend, tiny_triton: TritonServer, slots: SharedSlots
) -> None:
    assert slots.name not in registered_regions(tiny_triton)

    await mean_by_triton(backend, 1)

    assert slots.name in registered_regions(tiny_triton)
    await backend.close()
    assert slots.name not in registered_regions(tiny_triton)


async def test_fifty_at_once_get_each_their_own_answer_through_three_slots(
    backend: TritonBackend, slots: SharedSlots
) -> None:
    in_slot: list[bool] = []

    async def ask_again_and_again(caller: int) -> list[float]:
        answers = []
        for turn in range(5):
            with backend.batch_buffer(CONTRACT, 1) as batch_nhwc:
                in_slot.append(slots.offset_of(batch_nhwc) is not None)
                batch_nhwc[:] = caller + 50 * turn
                batch_nhwc[0, 0, 0, 0] = 0
                output = await backend.infer(
                    CONTRACT, batch_nhwc, deadline=CLOCK.monotonic() + 30, priority=1
                )
            answers.append(float(output.tensor[0, 0, 0]))
        return answers

    answers = await asyncio.gather(*(ask_again_and_again(caller) for caller in range(50)))

    expected = [[expected_mean(caller + 50 * turn) for turn in range(5)] for caller in range(50)]
    np.testing.assert_allclose(answers, expected, rtol=1e-5)
    assert 3 < in_slot.count(True) < len(in_slot)
    assert slots.take() is not None


async def test_a_batch_larger_than_a_slot_travels_in_the_message(
    tiny_triton: TritonServer,
) -> None:
    slots = SharedSlots(slots=1, slot_bytes=2 * PICTURE_BYTES)
    backend = TritonBackend(tiny_triton.grpc_url, CLOCK, shared_memory=slots)

    assert await mean_by_triton(backend, 7, pictures=3) == pytest.approx(7)

    assert slots.name not in registered_regions(tiny_triton)
    await backend.close()


async def test_one_who_leaves_while_the_region_is_registered_leaves_alone(
    backend: TritonBackend, tiny_triton: TritonServer, slots: SharedSlots
) -> None:
    impatient = asyncio.create_task(mean_by_triton(backend, 1))
    patient = asyncio.create_task(mean_by_triton(backend, 2))
    await asyncio.wait([impatient], timeout=0)

    impatient.cancel()

    assert await patient == pytest.approx(expected_mean(2))
    assert impatient.cancelled()
    assert slots.name in registered_regions(tiny_triton)


async def test_the_slot_of_a_request_that_ran_out_of_time_serves_the_next(
    backend: TritonBackend,
) -> None:
    with backend.batch_buffer(CONTRACT, 1) as slow:
        slow[:] = 255
        with pytest.raises(DeadlineExceeded):
            await backend.infer(CONTRACT, slow, deadline=CLOCK.monotonic() + 0.1, priority=1)

    with backend.batch_buffer(CONTRACT, 1) as batch_nhwc:
        assert np.shares_memory(batch_nhwc, slow)
        batch_nhwc[:] = 0
        output = await backend.infer(CONTRACT, batch_nhwc, deadline=CLOCK.monotonic() + 30, priority=1)

    assert output.tensor.tolist() == [[[0.0]] * 5]


async def test_a_server_killed_and_started_again_is_served_through_shared_memory_again(
    tiny_repository: Path, tmp_path: Path, slots: SharedSlots, caplog: pytest.LogCaptureFixture
) -> None:
    with TritonServer(tiny_repository, ["probe"], free_triton_ports(), run_directory=tmp_path) as server:
        server.wait_ready(START_TIMEOUT_SECONDS)
        backend = TritonBackend(server.grpc_url, CLOCK, shared_memory=slots)
        assert await mean_by_triton(backend, 1) == pytest.approx(expected_mean(1))

        os.kill(server.pid or 0, signal.SIGKILL)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while server.restarts == 0 or not await backend.is_ready(CONTRACT):
                await a_moment()
        assert slots.name not in registered_regions(server)
        answers = await asyncio.gather(*(mean_by_triton(backend, level) for level in (2, 3)))

        assert answers == pytest.approx([expected_mean(2), expected_mean(3)])
        assert slots.name in registered_regions(server)
        assert REFUSAL not in caplog.text
        await backend.close()


async def test_what_a_killed_process_left_registered_is_unregistered_by_the_next(
    backend: TritonBackend, tiny_triton: TritonServer, slots: SharedSlots
) -> None:
    await mean_by_triton(backend, 1)
    (Path("/dev/shm") / slots.name).unlink()  # as the next process to start does with a dead one's
    next_slots = SharedSlots(slots=1, slot_bytes=PICTURE_BYTES)
    next_backend = TritonBackend(tiny_triton.grpc_url, CLOCK, shared_memory=next_slots)
    assert slots.name in registered_regions(tiny_triton)

    await mean_by_triton(next_backend, 1)

    assert slots.name not in registered_regions(tiny_triton)
    assert next_slots.name in registered_regions(tiny_triton)
    await next_backend.close()


async def test_a_server_that_refuses_gets_messages_and_is_named_in_the_log_once(
    backend: TritonBackend, slots: SharedSlots, caplog: pytest.LogCaptureFixture
) -> None:
    (Path("/dev/shm") / slots.name).unlink()  # to this Triton, as if it ran on another machine

    answers = await asyncio.gather(*(mean_by_triton(backend, level) for level in (1, 2, 3, 4)))
    answers.append(await mean_by_triton(backend, 5))

    assert answers == pytest.approx([expected_mean(level) for level in (1, 2, 3, 4, 5)])
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [REFUSAL in record.getMessage() for record in warnings] == [True]
    assert slots.take() is None


async def test_a_server_that_is_not_there_has_not_refused(
    slots: SharedSlots, caplog: pytest.LogCaptureFixture
) -> None:
    backend = TritonBackend(f"127.0.0.1:{free_triton_ports().grpc}", CLOCK, shared_memory=slots)

    with pytest.raises(BackendUnavailable):
        await mean_by_triton(backend, 1)

    assert REFUSAL not in caplog.text
    assert slots.take() is not None
    await backend.close()
