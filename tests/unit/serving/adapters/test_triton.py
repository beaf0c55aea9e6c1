from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2

from serving.adapters.triton import _request_message, _varint, error_for
from serving.adapters.triton_region import Place
from serving.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    VersionGone,
    VisiongateError,
)
from tests.support import onnx_models


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_of_grpc_means_something(code: grpc.StatusCode) -> None:
    assert issubclass(error_for(code, "whatever it says"), VisiongateError)


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (grpc.StatusCode.UNKNOWN, "", InternalError),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses", BackendUnavailable),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found", VersionGone),
        (grpc.StatusCode.INVALID_ARGUMENT, "Model 'm' is not ready", VersionGone),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Request for unknown model: 'm' version 1 is not at ready state",
            VersionGone,
        ),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input", InternalError),
        (grpc.StatusCode.INTERNAL, "Stub process 'm_0_0' is not healthy.", BackendUnavailable),
        (grpc.StatusCode.CANCELLED, "", BackendUnavailable),
        (grpc.StatusCode.UNAVAILABLE, "[request id: 1] Exceeds maximum queue size", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max (9 vs. 8)", InternalError),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", DeadlineExceeded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded),
    ],
)
def test_what_triton_says_decides_where_its_code_says_too_little(
    code: grpc.StatusCode, text: str, error: type[VisiongateError]
) -> None:
    assert error_for(code, text) is error


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (2**32, b"\x80" * 4 + b"\x10"),
    ],
)
def test_varint_is_protobufs(number: int, encoded: bytes) -> None:
    assert _varint(number) == encoded


@pytest.mark.parametrize("batch_size", [0, 1, 3, 400])
def test_the_message_written_by_hand_is_the_one_protobuf_would_write(batch_size: int) -> None:
    contract = onnx_models.probe_contract("m")
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, 4, 4, 3), np.uint8)
    expected = service_pb2.ModelInferRequest(
        model_name="m", model_version="1", raw_input_contents=[batch.tobytes()]
    )
    expected.inputs.add(name="images", datatype="UINT8", shape=batch.shape)
    expected.outputs.add(name="predictions")
    expected.parameters["timeout"].int64_param = 1_500_000
    expected.parameters["priority"].int64_param = 2

    message = service_pb2.ModelInferRequest.FromString(_request_message(contract, batch, 1.5, 2))

    assert message == expected


async def test_a_message_says_where_the_pictures_lie_instead_of_carrying_them() -> None:
    contract = onnx_models.probe_contract("m")
    batch = np.zeros((2, 4, 4, 3), np.uint8)
    place = Place("region", 4096, batch.nbytes, asyncio.create_task(asyncio.sleep(0, result=True)))
    tensor = grpcclient.InferInput("images", batch.shape, "UINT8").set_shared_memory("region", 96, 4096)
    expected = service_pb2.ModelInferRequest(model_name="m", model_version="1", inputs=[tensor._get_tensor()])
    expected.outputs.add(name="predictions")
    expected.parameters["timeout"].int64_param = 1_500_000
    expected.parameters["priority"].int64_param = 1

    message = service_pb2.ModelInferRequest.FromString(_request_message(contract, batch, 1.5, 1, place))

    assert message == expected
    await place.registration
