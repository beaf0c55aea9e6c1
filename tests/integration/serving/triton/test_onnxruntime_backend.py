"""Our `onnxruntime` backend inside a real Triton, asked the way any client would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from serving.triton.launcher import TritonServer
from tests.conftest import ONE_CPU_INSTANCE, TINY_MODELS
from tests.support import onnx_models

TRITON_TYPES = {"float32": "FP32", "int64": "INT64"}
Tensors = dict[str, Any]
WARM_UP = 1  # Triton counts it like any request


class Client:
    """The few calls of Triton's HTTP interface that these tests make."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def infer(self, model: str, outputs: tuple[str, ...] = (), **inputs: Any) -> Tensors:
        """Output name to array. Raises RuntimeError with Triton's text."""
        response = await self._http.post(
            f"/v2/models/{model}/infer",
            json={
                "inputs": [_as_json(name, array) for name, array in inputs.items()],
                **({"outputs": [{"name": name} for name in outputs]} if outputs else {}),
            },
        )
        answer = response.json()
        if response.is_error:
            raise RuntimeError(answer["error"])
        return {entry["name"]: np.reshape(entry["data"], entry["shape"]) for entry in answer["outputs"]}

    async def runs_of(self, model: str, requests: int) -> int:
        """How many runs it took to answer so many requests; Triton counts an answer after sending it."""
        async with asyncio.timeout(10):
            while True:
                response = await self._http.get(f"/v2/models/{model}/stats")
                (stats,) = response.json()["model_stats"]
                if int(stats["inference_count"]) >= requests:
                    assert int(stats["inference_count"]) == requests
                    return int(stats["execution_count"])

    async def load(self, model: str) -> str:
        """Triton's complaint; empty when the model was loaded."""
        response = await self._http.post(f"/v2/repository/models/{model}/load", json={})
        return str(response.json()["error"]) if response.is_error else ""

    async def unload(self, model: str) -> None:
        response = await self._http.post(f"/v2/repository/models/{model}/unload", json={})
        response.raise_for_status()


def _as_json(name: str, array: Any) -> dict[str, Any]:
    array = np.asarray(array)
    return {
        "name": name,
        "shape": array.shape,
        "datatype": TRITON_TYPES[str(array.dtype)],
        "data": array.ravel().tolist(),
    }


def floats(*values: float) -> Any:
    return np.array([values], np.float32)


def stubs_of(server: TritonServer, model: str) -> list[psutil.Process]:
    """The processes that run a model's instances: one each."""
    stubs = []
    for child in psutil.Process(server.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(part.startswith(f"{model}_0") for part in child.cmdline()):
                stubs.append(child)
    return stubs


@pytest.fixture
async def client(tiny_triton: TritonServer) -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=tiny_triton.http_url, timeout=30.0, limits=limits) as http:
        yield Client(http)


def add_model(
    repository: Path, name: str, config: str, text: str = onnx_models.ADD_ONE, **options: str
) -> None:
    onnx_models.write_entry(repository, name, text, config, **options)


async def test_requests_that_meet_are_joined_and_each_gets_its_own_answer(
    client: Client, tiny_repository: Path
) -> None:
    add_model(tiny_repository, "joining", ONE_CPU_INSTANCE + TINY_MODELS["add_one"][1])
    assert await client.load("joining") == ""

    answers = await asyncio.gather(*(client.infer("joining", x=floats(i, 2 * i, -i)) for i in range(48)))

    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], floats(i + 1, 2 * i + 1, 1 - i))
    assert await client.runs_of("joining", requests=48 + WARM_UP) < 24
    await client.unload("joining")


async def test_batches_of_different_lengths_are_joined_and_split_where_they_met(client: Client) -> None:
    batches = [np.full((1 + i % 3, 3), i, np.float32) for i in range(12)]

    answers = await asyncio.gather(*(client.infer("add_one", x=batch) for batch in batches))

    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], batch + 1)


async def test_requests_whose_shapes_differ_beyond_the_batch_axis_are_run_apart(client: Client) -> None:
    rows = [np.arange(1 + i % 4, dtype=np.float32)[np.newaxis] for i in range(16)]

    answers = await asyncio.gather(*(client.infer("add_one", x=row) for row in rows))

    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], row + 1)


async def test_inputs_and_outputs_go_by_their_names_not_by_their_order(client: Client) -> None:
    answer = await client.infer("sum_and_difference", a=floats(5, 7), b=floats(1, 2))

    np.testing.assert_array_equal(answer["total"], floats(6, 9))
    np.testing.assert_array_equal(answer["difference"], floats(4, 5))


async def test_joined_requests_may_each_want_other_outputs(client: Client) -> None:
    wishes = [("total",), ("difference",), ("difference", "total"), ()] * 4

    answers = await asyncio.gather(
        *(
            client.infer("sum_and_difference", wish, a=floats(i, i), b=floats(1, 0))
            for i, wish in enumerate(wishes)
        )
    )

    expected = [{"total": floats(i + 1, i), "difference": floats(i - 1, i)} for i in range(len(wishes))]
    for wish, answer, arrays in zip(wishes, answers, expected, strict=True):
        assert set(answer) == set(wish or arrays)
        for name in answer:
            np.testing.assert_array_equal(answer[name], arrays[name])


async def test_a_failing_request_does_not_fail_those_it_was_joined_with(client: Client) -> None:
    indices = [0, 1, 99, 2, 3, 1, 2, 99]

    answers = await asyncio.gather(
        *(client.infer("look_up", index=np.array([[index]])) for index in indices), return_exceptions=True
    )

    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, RuntimeError)
            assert "Gather" in str(answer)
        else:
            assert isinstance(answer, dict)
            assert answer["value"] == [[10.0 * index]]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (np.zeros((1, 3), np.int64), "data-type"),
        (np.zeros((1, 2, 2), np.float32), "unexpected shape"),
        (np.zeros((9, 3), np.float32), "batch-size must be <= 8"),
    ],
)
async def test_a_wrong_tensor_is_refused_and_the_next_request_served(
    client: Client, tensor: Any, complaint: str
) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        await client.infer("add_one", x=tensor)

    np.testing.assert_array_equal((await client.infer("add_one", x=floats(1)))["y"], floats(2))


async def test_a_model_without_a_batch_axis_takes_each_request_as_it_is(
    client: Client, tiny_repository: Path
) -> None:
    config = """
        max_batch_size: 0
        default_model_filename: "other.onnx"
        input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }]
        output [{ name: "y" data_type: TYPE_FP32 dims: [-1, -1] }]
    """
    add_model(tiny_repository, "unbatched", ONE_CPU_INSTANCE + config, filename="other.onnx")
    assert await client.load("unbatched") == ""

    answers = await asyncio.gather(
        *(client.infer("unbatched", x=np.full((i, 2), i, np.float32)) for i in (1, 2, 3))
    )

    assert [answer["y"].tolist() for answer in answers] == [[[i + 1] * 2] * i for i in (1, 2, 3)]
    assert await client.runs_of("unbatched", requests=3) == 3
    await client.unload("unbatched")


async def test_instance_count_and_thread_counts_are_honoured(
    client: Client, tiny_triton: TritonServer, tiny_repository: Path
) -> None:
    threads: dict[int, int] = {}
    for count in (1, 4):
        config = (
            TINY_MODELS["add_one"][1]
            + "instance_group [{ count: 2 kind: KIND_CPU }]"
            + f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{count}" }} }}'
        )
        add_model(tiny_repository, f"threads_{count}", config)
        assert await client.load(f"threads_{count}") == ""
        await client.infer(f"threads_{count}", x=floats(1))
        stubs = stubs_of(tiny_triton, f"threads_{count}")
        assert len(stubs) == 2
        threads[count] = stubs[0].num_threads()
        await client.unload(f"threads_{count}")

    assert threads[4] - threads[1] == 3


async def test_unloading_ends_the_process_that_held_the_model(
    client: Client, tiny_triton: TritonServer, tiny_repository: Path
) -> None:
    add_model(tiny_repository, "passing", ONE_CPU_INSTANCE + TINY_MODELS["add_one"][1])
    assert await client.load("passing") == ""
    stubs = stubs_of(tiny_triton, "passing")
    assert len(stubs) == 1

    await client.unload("passing")

    gone, alive = psutil.wait_procs(stubs, timeout=10)
    assert (len(gone), alive) == (1, [])
    with pytest.raises(RuntimeError, match="unknown model"):
        await client.infer("passing", x=floats(1))


LOAD_ERRORS = {
    "no file": ("", "has no file 'elsewhere.onnx'", 'default_model_filename: "elsewhere.onnx"'),
    "other inputs": (onnx_models.LOOK_UP, "no input 'x', only ['index']", ""),
    "not a number": (
        onnx_models.ADD_ONE,
        "parameter 'intra_op_thread_count' is a whole number, not 'many'",
        'parameters { key: "intra_op_thread_count" value { string_value: "many" } }',
    ),
}


@pytest.mark.parametrize("case", LOAD_ERRORS)
async def test_a_model_that_cannot_work_does_not_load_and_says_why(
    client: Client, tiny_repository: Path, case: str
) -> None:
    text, reason, config = LOAD_ERRORS[case]
    name = f"unloadable_{case.replace(' ', '_')}"
    full_config = ONE_CPU_INSTANCE + TINY_MODELS["add_one"][1] + config
    add_model(tiny_repository, name, full_config, text or onnx_models.ADD_ONE)

    complaint = await client.load(name)

    assert f"model {name!r}: " in complaint
    assert reason in complaint


async def test_a_file_that_is_no_model_does_not_load_and_says_why(
    client: Client, tiny_repository: Path
) -> None:
    add_model(tiny_repository, "garbage", ONE_CPU_INSTANCE + TINY_MODELS["add_one"][1])
    (tiny_repository / "garbage" / "1" / "model.onnx").write_bytes(b"not a model")

    complaint = await client.load("garbage")

    assert "model 'garbage': " in complaint
    assert "model.onnx" in complaint


async def test_warm_up_runs_the_model_before_it_is_ready(client: Client, tiny_repository: Path) -> None:
    zero = 'inputs { key: "index" value { data_type: TYPE_INT64 dims: [1] zero_data: true } }'
    warm_up = f"""
        model_warmup [{{ name: "one" batch_size: 1 {zero} }}, {{ name: "all" batch_size: 8 {zero} }}]
    """
    for name, extra, pictures, runs in (("cold", "", 0, 0), ("warm", warm_up, 1 + 8, 2)):
        config = ONE_CPU_INSTANCE + TINY_MODELS["look_up"][1] + extra
        add_model(tiny_repository, name, config, onnx_models.LOOK_UP)

        assert await client.load(name) == ""

        assert await client.runs_of(name, requests=pictures) == runs
        await client.unload(name)


async def test_settings_that_are_not_honoured_are_said_so(
    client: Client, tiny_repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = (
        TINY_MODELS["add_one"][1]
        + 'parameters { key: "enable_mem_arena" value { string_value: "0" } }'
        + "optimization { graph { level: 1 } }"
    )
    add_model(tiny_repository, "wishful", ONE_CPU_INSTANCE + config)

    assert await client.load("wishful") == ""

    assert (
        "model 'wishful': the Python onnxruntime backend ignores ['enable_mem_arena', 'graph']" in caplog.text
    )
    await client.unload("wishful")
