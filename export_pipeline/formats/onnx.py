"""ONNX, traced, as also older ONNX Runtimes take it: one file, whole shapes, no path or time in it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, Final

import onnx
import torch

from export_pipeline.errors import Unsupported
from export_pipeline.facts import Head, ModelFacts, Tensor
from export_pipeline.formats.float16 import to_float16
from export_pipeline.formats.nms_graph import embed_nms
from export_pipeline.frameworks import Graph
from export_pipeline.job import sha256_of
from export_pipeline.request import ExportConfig

FILE_NAME: Final = "model.onnx"
MOST_BYTES: Final = 2 * 1024**3 - 1
"""What one protobuf message can hold."""
NEWEST_OPSET: Final = 20
"""What torch traces."""
NEWEST_IR: Final = 10
"""What the ONNX Runtime of Triton 2.51 reads."""


def write(graph: Graph, folder: Path, config: ExportConfig) -> ModelFacts:
    """Raises Unsupported for more than 2 GiB in one file, an opset above 20, suppression below opset 12."""
    if config.opset_version > NEWEST_OPSET:
        raise Unsupported(
            f"opset_version {config.opset_version} is newer than {NEWEST_OPSET}, the newest here."
        )
    model = _trace(graph, config.opset_version)
    made_with = {**graph.made_with, "onnx": onnx.__version__}
    if config.precision == "fp16":
        made_with |= to_float16(model)
    head: Head = graph.head
    outputs = graph.outputs
    if config.embed_nms:
        head, outputs = "yolo_end_to_end", (embed_nms(model, graph.outputs[0], graph.class_count, config),)
    _write_shapes(model, graph.inputs, outputs)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    onnx.checker.check_model(model, full_check=True)
    file = folder / FILE_NAME
    file.write_bytes(model.SerializeToString(deterministic=True))
    return ModelFacts(
        file=file.name,
        sha256=sha256_of(file),
        size_bytes=file.stat().st_size,
        export_format="onnx",
        precision=config.precision,
        opset_version=config.opset_version,
        ir_version=model.ir_version,
        head=head,
        nms_embedded=config.embed_nms,
        preprocessing_embedded=config.embed_preprocessing,
        max_batch_size=config.max_batch_size,
        resize=graph.resize,
        normalize=graph.normalize,
        inputs=graph.inputs,
        outputs=outputs,
        made_with=made_with,
    )


def _trace(graph: Graph, opset_version: int) -> onnx.ModelProto:
    (images,) = graph.inputs
    dynamic = images.shape[0] == -1
    # Batch 2: a batch of one would let tracing take it for a constant.
    batch = torch.zeros(
        2 if dynamic else 1,
        *images.shape[1:],
        dtype=torch.uint8 if images.dtype == "uint8" else torch.float32,
    )
    _require_room(sum(value.numel() * value.element_size() for value in graph.module.state_dict().values()))
    names = [output.name for output in graph.outputs]
    buffer = io.BytesIO()
    with torch.inference_mode(), warnings.catch_warnings():
        # What is traced as a constant is meant to be (anchors, shapes), and `dynamo` writes two files.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        graph.module(batch)  # the head keeps its anchors of this size, so that they are traced as constants
        torch.onnx.export(
            graph.module,
            (batch,),
            buffer,
            dynamo=False,
            opset_version=opset_version,
            input_names=[images.name],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in (images.name, *names)} if dynamic else None,
        )
    return onnx.load_from_string(buffer.getvalue())


def _require_room(weight_bytes: int) -> None:
    if weight_bytes > MOST_BYTES:
        raise Unsupported(
            f"The network's {weight_bytes:,} bytes of weights do not fit into one ONNX file of 2 GiB."
        )


def _write_shapes(model: onnx.ModelProto, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Tracing loses sizes of outputs, and Triton compares them with config.pbtxt."""
    for values, tensors in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            _write_shape(value.type.tensor_type.shape, tensor)


def _write_shape(shape: Any, tensor: Tensor) -> None:
    del shape.dim[:]
    for size in tensor.shape:
        dimension = shape.dim.add()
        if size == -1:
            dimension.dim_param = "batch"
        else:
            dimension.dim_value = size
