"""Half precision inside, single precision outside: callers and the contract see the same tensors."""

from __future__ import annotations

import warnings

import onnx
import onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel


def to_float16(model: onnx.ModelProto) -> dict[str, str]:
    """Change the model in place. Returns what it was made with, by name."""
    with warnings.catch_warnings():
        # One warning for each weight beyond half precision's range; the certificate judges what it does.
        warnings.simplefilter("ignore", UserWarning)
        converted = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph, is_deterministic=True)  # its casts come last
    model.CopyFrom(converted)
    return {"onnxruntime": onnxruntime.__version__}
