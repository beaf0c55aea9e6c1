"""What only a real server can show: its own words for trouble, its end, and its coming back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from serving.adapters.memory.clock import ManualClock
from serving.adapters.triton import TritonBackend, _request_message, error_for
from serving.domain.contract import ModelContract
from serving.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    OperatorError,
    Overloaded,
    VersionGone,
)
from serving.ports import InferenceOutput
from serving.triton.launcher import TritonServer
from tests.conftest import ONE_CPU_INSTANCE, START_TIMEOUT_SECONDS, TINY_MODELS
from tests.support import onnx_models
from tests.support.contracts import metadata
from tests.support.ports import free_triton_ports
from tests.support.triton_stub import stub_of

CONTRACT = onnx_models.probe_contract("narrow")
CLOCK = ManualClock()
PROBE_CONFIG = ONE_CPU_INSTANCE + TINY_MODELS["probe"][1]
SLOW = np.full((1, 4, 4, 3), 255, np.uint8)
FAST = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.fixture
async def backend(tiny_triton: TritonServer) -> AsyncIterator[TritonBackend]:
    made = TritonBackend(tiny_triton.grpc_url, CLOCK)
    yield made
    await made.close()


def call(
    backend: TritonBackend, batch_nhwc: NDArray[np.uint8], seconds: float = 30.0
) -> asyncio.Task[InferenceOutput]:
    return asyncio.create_task(
        backend.infer(CONTRACT, batch_nhwc, deadline=CLOCK.monotonic() + seconds, priority=1)
    )


async def a_moment() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.02)


async def until_it_runs(server: TritonServer) -> None:
    """Return when the process of the `narrow` model has been at work on `SLOW` for a tenth of its time."""
    stub = stub_of(server, "narrow")
    before = stub.cpu_times().user
    async with asyncio.timeout(10):
        while stub.cpu_times().user < before + 0.1:
            await a_moment()


async def test_a_full_queue_is_overload(backend: TritonBackend, tiny_triton: TritonServer) -> None:
    running = call(backend, SLOW)
    await until_it_runs(tiny_triton)
    waiting, refused = call(backend, FAST), call(backend, FAST)

    done, left = await asyncio.wait([waiting, refused], return_when=asyncio.FIRST_COMPLETED)

    (overloaded,) = done
    with pytest.raises(Overloaded):
        await overloaded
    await asyncio.gather(running, *left)


async def test_triton_itself_drops_from_its_queue_what_is_past_its_deadline(
    backend: TritonBackend, tiny_triton: TritonServer
) -> None:
    running = call(backend, SLOW)
    await until_it_runs(tiny_triton)
    message = _request_message(CONTRACT, FAST, timeout_seconds=0.001, priority=1)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await backend._infer(message, timeout=30)

    assert error_for(caught.value.code(), caught.value.details()) is DeadlineExceeded
    assert "timeout expired" in caught.value.details()
    await running


async def test_tritons_words_go_to_the_log_and_no_further(
    backend: TritonBackend, caplog: pytest.LogCaptureFixture
) -> None:
    wrong_shape = np.zeros((1, 5, 5, 3), np.uint8)

    with pytest.raises(InternalError) as caught:
        await call(backend, wrong_shape)

    assert "unexpected shape" in caplog.text
    assert "shape" not in str(caught.value)


async def test_a_batch_over_the_message_limit_is_an_internal_error(tiny_triton: TritonServer) -> None:
    backend = TritonBackend(tiny_triton.grpc_url, CLOCK, max_message_bytes=100)

    with pytest.raises(InternalError):
        await call(backend, np.zeros((4, 4, 4, 3), np.uint8))

    await backend.close()


async def test_an_answer_that_is_not_the_contracts_is_an_internal_error(
    backend: TritonBackend,
) -> None:
    raw = CONTRACT.model_dump(mode="json")
    raw["output_spec"][0]["name"] = "something_else"
    other = ModelContract.model_validate(raw)

    with pytest.raises(InternalError):
        await backend.infer(other, FAST, deadline=CLOCK.monotonic() + 30, priority=1)


async def test_nobody_listening_is_unavailable_at_once() -> None:
    backend = TritonBackend(f"127.0.0.1:{free_triton_ports().grpc}", CLOCK)

    async with asyncio.timeout(5):
        assert not await backend.is_ready(CONTRACT)
        with pytest.raises(BackendUnavailable):
            await call(backend, FAST)

    await backend.close()


async def test_a_server_killed_in_the_middle_is_unavailable_and_found_again(
    tiny_repository: Path, tmp_path: Path
) -> None:
    with TritonServer(tiny_repository, ["narrow"], free_triton_ports(), run_directory=tmp_path) as server:
        server.wait_ready(START_TIMEOUT_SECONDS)
        backend = TritonBackend(server.grpc_url, CLOCK)
        in_flight = call(backend, SLOW)
        await until_it_runs(server)

        os.kill(server.pid or 0, signal.SIGKILL)

        with pytest.raises(BackendUnavailable):
            await in_flight
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while not await backend.is_ready(CONTRACT):
                await a_moment()
        assert (await call(backend, FAST)).tensor.shape == (1, 5, 1)
        await backend.close()


async def test_the_sample_model_answers_through_the_whole_of_it(triton: TritonServer) -> None:
    metadata = Path(__file__).parents[4] / "model_repo" / "shapes" / "metadata.json"
    contract = ModelContract.parse(metadata.read_bytes())
    backend = TritonBackend(triton.grpc_url, CLOCK)
    grey = np.full((2, contract.input_size.height, contract.input_size.width, 3), 114, np.uint8)

    output = await backend.infer(contract, grey, deadline=CLOCK.monotonic() + 30, priority=1)

    assert output.tensor.shape == (2, *contract.output.shape[1:])
    np.testing.assert_allclose(output.tensor[0], output.tensor[1], atol=1e-3)
    await backend.close()


async def test_a_model_is_loaded_used_and_unloaded(backend: TritonBackend, tiny_repository: Path) -> None:
    contract = onnx_models.probe_contract("late")
    assert not await backend.is_ready(contract)
    onnx_models.write_entry(tiny_repository, "late", onnx_models.MEAN_OF_EACH, PROBE_CONFIG)

    await backend.load(contract)
    output = await backend.infer(
        contract, np.full((1, 4, 4, 3), 0, np.uint8), deadline=CLOCK.monotonic() + 30, priority=1
    )
    assert output.model_version == "1"

    await backend.unload("late")
    with pytest.raises(VersionGone):
        await backend.infer(
            contract, np.zeros((1, 4, 4, 3), np.uint8), deadline=CLOCK.monotonic() + 30, priority=1
        )


async def test_loading_what_is_loaded_changes_nothing(
    backend: TritonBackend, tiny_triton: TritonServer
) -> None:
    before = stub_of(tiny_triton, "probe").pid

    for _ in range(3):
        await backend.load(onnx_models.probe_contract())

    assert stub_of(tiny_triton, "probe").pid == before


async def test_a_model_that_loads_without_the_version_says_so(backend: TritonBackend) -> None:
    raw = metadata("probe", side=4, anchors=1, classes=["thing"])
    raw["model_info"]["version"] = "2"
    second = ModelContract.parse(orjson.dumps(raw))

    with pytest.raises(OperatorError, match="not version 2: see version_policy"):
        await backend.load(second)


async def test_a_model_that_does_not_load_comes_with_tritons_reason(
    backend: TritonBackend, tiny_repository: Path
) -> None:
    onnx_models.write_entry(
        tiny_repository, "wrong", onnx_models.MEAN_OF_EACH, PROBE_CONFIG.replace("predictions", "elsewhere")
    )

    with pytest.raises(OperatorError, match="elsewhere"):
        await backend.load(onnx_models.probe_contract("wrong"))


async def test_a_server_that_loads_by_itself_need_not_be_told(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(tiny_repository / "probe", repository / "probe")
    arguments = TritonServer._arguments

    def by_itself(self: TritonServer, backends: Path, shared_memory_prefix: str) -> list[str]:
        usual = arguments(self, backends, shared_memory_prefix)
        kept = [each for each in usual if not each.startswith("--load-model")]
        return ["--model-control-mode=none" if "model-control-mode" in each else each for each in kept]

    monkeypatch.setattr(TritonServer, "_arguments", by_itself)
    with TritonServer(repository, ["probe"], free_triton_ports(), run_directory=tmp_path / "run") as server:
        server.wait_ready(60)
        made = TritonBackend(server.grpc_url, CLOCK)
        await made.load(onnx_models.probe_contract())
        await made.close()
