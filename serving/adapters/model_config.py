"""What the gateway needs to know of a model's `config.pbtxt`, and whether it says what the contract says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.domain.contract import ModelContract
from serving.domain.metadata import TensorSpec
from serving.errors import OperatorError

_TRITON_TYPE = {"uint8": model_config_pb2.TYPE_UINT8, "float32": model_config_pb2.TYPE_FP32}
"""Numbers: a configuration may hold some that have no name."""


def read_max_batch_size(config: bytes, contract: ModelContract) -> int:
    """Most pictures in one call, at least 1.

    A graph that takes one picture and no more has `max_batch_size: 0`, and its 1 among the dims.

    Raises OperatorError for a model whose tensors are not those of the contract.
    """
    try:
        parsed = text_format.Parse(config.decode(), model_config_pb2.ModelConfig())
    except (UnicodeDecodeError, text_format.ParseError) as exc:
        raise OperatorError(f"config.pbtxt cannot be read: {exc}") from exc
    first_axis = 1 if parsed.max_batch_size else 0
    _require_same("input", parsed.input, contract.input, first_axis)
    _require_same("output", parsed.output, contract.output, first_axis)
    if not parsed.max_batch_size and contract.input.shape[0] != 1:
        raise OperatorError("config.pbtxt: max_batch_size must be at least 1, pictures come in batches")
    return max(1, int(parsed.max_batch_size))


def _require_same(what: str, configured: Sequence[Any], promised: TensorSpec, first_axis: int) -> None:
    found = [(entry.name, entry.data_type, tuple(entry.dims)) for entry in configured]
    wanted = [(promised.name, _TRITON_TYPE[promised.dtype], promised.shape[first_axis:])]
    if found != wanted:
        raise OperatorError(f"config.pbtxt: the {what} is not the one that metadata.json describes")
