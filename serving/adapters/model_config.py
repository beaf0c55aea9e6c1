"""What the gateway needs to know of a model's `config.pbtxt`."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.errors import OperatorError


def read_max_batch_size(config: Path) -> int:
    """Most pictures in one call, at least 1. Raises OperatorError for a model that takes no batches."""
    try:
        parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise OperatorError(f"{config.name} cannot be read: {exc}") from exc
    if parsed.max_batch_size < 1:
        raise OperatorError(f"{config.name}: max_batch_size must be at least 1, pictures come in batches.")
    return int(parsed.max_batch_size)
