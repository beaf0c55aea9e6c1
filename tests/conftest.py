"""Real servers that several rooms of tests share; each is started once, for the first test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.triton.launcher import TritonServer
from tests.support import onnx_models
from tests.support.ports import free_triton_ports

# ONNX Runtime's Linux builds report to their maker unless told not to; it is read when they are imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

REPOSITORY = Path(__file__).parents[1] / "model_repo"
START_TIMEOUT_SECONDS = 120.0

PROBE_CONFIG = """
    max_batch_size: 4
    input [{ name: "images" data_type: TYPE_UINT8 dims: [4, 4, 3] }]
    output [{ name: "predictions" data_type: TYPE_FP32 dims: [5, 1] }]
    dynamic_batching { default_queue_policy {
        timeout_action: REJECT allow_timeout_override: true
        default_timeout_microseconds: 30000000 max_queue_size: QUEUE_SIZE } }
"""
TINY_MODELS = {
    "add_one": (
        onnx_models.ADD_ONE,
        """
        max_batch_size: 8
        input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
        dynamic_batching { max_queue_delay_microseconds: 50000 }
        model_warmup [{ name: "one" batch_size: 1 inputs {
            key: "x" value { data_type: TYPE_FP32 dims: [3] zero_data: true } } }]
        """,
    ),
    "sum_and_difference": (
        onnx_models.SUM_AND_DIFFERENCE,
        """
        max_batch_size: 8
        input [{ name: "b" data_type: TYPE_FP32 dims: [2] }, { name: "a" data_type: TYPE_FP32 dims: [2] }]
        output [{ name: "difference" data_type: TYPE_FP32 dims: [2] },
                { name: "total" data_type: TYPE_FP32 dims: [2] }]
        dynamic_batching { max_queue_delay_microseconds: 50000 }
        """,
    ),
    "look_up": (
        onnx_models.LOOK_UP,
        """
        max_batch_size: 8
        input [{ name: "index" data_type: TYPE_INT64 dims: [1] }]
        output [{ name: "value" data_type: TYPE_FP32 dims: [1] }]
        dynamic_batching { max_queue_delay_microseconds: 50000 }
        """,
    ),
    "probe": (onnx_models.MEAN_OF_EACH, PROBE_CONFIG.replace("QUEUE_SIZE", "64")),
    "narrow": (onnx_models.MEAN_OF_EACH, PROBE_CONFIG.replace("QUEUE_SIZE", "1")),
}
ONE_CPU_INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """A developer's own `VISIONGATE_…` would change what is tested."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith("VISIONGATE_") and not name.startswith("VISIONGATE_TEST_"):
                monkeypatch.delenv(name)
        yield


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton that serves the sample model, `shapes`."""
    with TritonServer(
        REPOSITORY, ["shapes"], free_triton_ports(), run_directory=tmp_path_factory.mktemp("triton")
    ) as server:
        server.wait_ready(START_TIMEOUT_SECONDS)
        yield server


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `TINY_MODELS`. Tests may add their own, and load them by Triton's model control."""
    repository = tmp_path_factory.mktemp("tiny_models")
    for name, (text, config) in TINY_MODELS.items():
        onnx_models.write_entry(repository, name, text, ONE_CPU_INSTANCE + config)
    return repository


@pytest.fixture(scope="session")
def tiny_triton(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton that serves the models of `TINY_MODELS`."""
    with TritonServer(
        tiny_repository,
        list(TINY_MODELS),
        free_triton_ports(),
        run_directory=tmp_path_factory.mktemp("tiny_triton"),
    ) as server:
        server.wait_ready(START_TIMEOUT_SECONDS)
        yield server
