"""What of the backend can be told without a server or a GPU; the rest is tested inside a real Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from serving.triton import installation
from serving.triton.installation import Installation

MODEL = Path(installation.__file__).parent / "backends" / "onnxruntime" / "model.py"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend's file as Triton's stub imports it, beside Triton's own module."""
    monkeypatch.syspath_prepend(Installation.find().backends / "python")
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "device", "available", "providers"),
    [
        ("CPU", 0, [CPU], [CPU]),
        ("CPU", 0, [CUDA, CPU], [CPU]),
        ("MODEL", 0, [CPU], [CPU]),
        ("GPU", 0, [CUDA, CPU], [(CUDA, {"device_id": "0"}), CPU]),
        ("GPU", 3, [CUDA, CPU], [(CUDA, {"device_id": "3"}), CPU]),
    ],
)
def test_the_kind_of_an_instance_decides_what_it_runs_on(
    model: ModuleType, kind: str, device: int, available: list[str], providers: list[object]
) -> None:
    assert model.execution_providers(kind, device, available) == providers


def test_a_gpu_is_never_quietly_replaced_by_the_cpu(model: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="KIND_GPU needs an ONNX Runtime with CUDA"):
        model.execution_providers("GPU", 0, [CPU])


def test_without_parameters_onnxruntime_decides_on_threads(model: ModuleType) -> None:
    options = model.session_options({})

    assert options.intra_op_num_threads == 0
    assert options.inter_op_num_threads == 0
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_parameters_go_by_nvidias_names(model: ModuleType) -> None:
    options = model.session_options(
        {
            "intra_op_thread_count": {"string_value": "3"},
            "inter_op_thread_count": {"string_value": "2"},
            "execution_mode": {"string_value": "1"},
        }
    )

    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize("text", ["", "many", "-1", "1.5"])
def test_a_parameter_that_is_no_number_is_named(model: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="parameter 'execution_mode' is a whole number"):
        model.session_options({"execution_mode": {"string_value": text}})
