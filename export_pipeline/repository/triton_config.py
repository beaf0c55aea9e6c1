"""`config.pbtxt` as typed data, written and read by Triton's own protobuf.

A graph whose batch is not dynamic gets `max_batch_size: 0` and dimensions that begin with its batch: NVIDIA's
ONNX Runtime backend loads a model with a `max_batch_size` only if its first dimension is -1. On the wire the
two look the same, a request for one picture is `[1, …]`; Triton joins no requests for such a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.facts import ModelFacts, Tensor

BACKENDS: Final = {"onnx": "onnxruntime"}
DATA_TYPES: Final = {
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
PRIORITY_LEVELS: Final = 3
"""1 overtakes 2, and 2 overtakes 3: the gateway asks with its callers' priority."""


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """dims: without the batch where the model has a `max_batch_size`; -1 where one is dynamic."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How many requests of each priority may wait and for how long; a request may ask for less time."""

    max_queue_size: int = 64
    default_timeout_microseconds: int = 5_000_000


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """One model's entry.

    max_batch_size: 0 where Triton must not batch. versions: that are loaded, ascending.
    instances: sessions side by side. On a CPU two with a thread each answer a third more pictures than one
    with two: no thread ever waits for the other at the end of a layer.
    """

    name: str
    backend: str
    default_model_filename: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    versions: tuple[int, ...]
    queue: QueuePolicy = QueuePolicy()
    instances: int = 2
    threads_per_instance: int = 1

    def to_pbtxt(self) -> str:
        """The same text for the same data."""
        return _to_text(_message(self))


def config_of(name: str, version: int, model: ModelFacts) -> TritonConfig:
    """Raises ExportError for a model whose tensors do not begin with a batch."""
    batches = {tensor.shape[0] for tensor in (*model.inputs, *model.outputs)}
    if len(batches) != 1:
        raise ExportError(f"The model's tensors begin with different batches: {sorted(batches)}.")
    dynamic = batches == {-1}
    return TritonConfig(
        name=name,
        backend=BACKENDS[model.export_format],
        default_model_filename=model.file,
        max_batch_size=model.max_batch_size if dynamic else 0,
        inputs=tuple(_tensor(tensor, dynamic) for tensor in model.inputs),
        outputs=tuple(_tensor(tensor, dynamic) for tensor in model.outputs),
        versions=(version,),
    )


def _tensor(tensor: Tensor, dynamic: bool) -> TensorConfig:
    return TensorConfig(tensor.name, DATA_TYPES[tensor.dtype], tensor.shape[1:] if dynamic else tensor.shape)


def read_config(text: str) -> TritonConfig:
    """What `to_pbtxt` wrote. Raises BadInput where it says anything that this pipeline would not write."""
    message = _parse(text)
    config = _from_message(message)
    if _message(config) != message:
        raise BadInput(f"config.pbtxt of {config.name!r} is not one that this pipeline has written.")
    return config


def select_versions(text: str, versions: Sequence[int]) -> str:
    """The same `config.pbtxt`, whoever wrote it, that loads these versions. Raises BadInput."""
    message = _parse(text)
    message.version_policy.Clear()
    message.version_policy.specific.versions.extend(sorted(versions))
    return _to_text(message)


def selected_versions(text: str) -> tuple[int, ...]:
    """The versions that it names; none where it leaves the choice to Triton. Raises BadInput."""
    return tuple(_parse(text).version_policy.specific.versions)


def _parse(text: str) -> Any:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise BadInput(f"config.pbtxt cannot be read: {exc}") from exc


def _to_text(message: Any) -> str:
    return str(text_format.MessageToString(message, as_utf8=True, use_short_repeated_primitives=True))


def _from_message(message: Any) -> TritonConfig:
    queue = message.dynamic_batching.default_queue_policy
    group = message.instance_group[0] if message.instance_group else None
    threads = message.parameters["intra_op_thread_count"].string_value
    return TritonConfig(
        name=message.name,
        backend=message.backend,
        default_model_filename=message.default_model_filename,
        max_batch_size=message.max_batch_size,
        inputs=tuple(_tensor_of(entry) for entry in message.input),
        outputs=tuple(_tensor_of(entry) for entry in message.output),
        versions=tuple(message.version_policy.specific.versions),
        queue=QueuePolicy(queue.max_queue_size, queue.default_timeout_microseconds),
        instances=group.count if group is not None else 0,
        threads_per_instance=int(threads) if threads.isdecimal() else 0,
    )


def _tensor_of(entry: Any) -> TensorConfig:
    return TensorConfig(entry.name, model_config_pb2.DataType.Name(entry.data_type), tuple(entry.dims))


def _message(config: TritonConfig) -> Any:
    message = model_config_pb2.ModelConfig(
        name=config.name,
        backend=config.backend,
        default_model_filename=config.default_model_filename,
        max_batch_size=config.max_batch_size,
        input=[_tensor_message(model_config_pb2.ModelInput, each) for each in config.inputs],
        output=[_tensor_message(model_config_pb2.ModelOutput, each) for each in config.outputs],
        dynamic_batching=_dynamic_batching(config.queue),
        instance_group=[
            # A GPU where there is one, the CPU elsewhere.
            model_config_pb2.ModelInstanceGroup(
                count=config.instances, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO
            )
        ],
        model_warmup=_warmup(config),
    )
    message.version_policy.specific.versions.extend(config.versions)
    threads = {"intra_op_thread_count": config.threads_per_instance, "inter_op_thread_count": 1}
    for name, count in threads.items():
        message.parameters[name].string_value = str(count)
    return message


def _tensor_message(kind: Any, tensor: TensorConfig) -> Any:
    return kind(
        name=tensor.name, data_type=model_config_pb2.DataType.Value(tensor.data_type), dims=tensor.dims
    )


def _dynamic_batching(queue: QueuePolicy) -> Any:
    """No waiting to fill a batch: whatever queued up while the last one ran is the next one.

    Each priority has a queue of its own, and the policy is that of each. Who does not say how urgent it is,
    is not.
    """
    return model_config_pb2.ModelDynamicBatching(
        max_queue_delay_microseconds=0,
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=PRIORITY_LEVELS,
        default_queue_policy=model_config_pb2.ModelQueuePolicy(
            timeout_action=model_config_pb2.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=queue.default_timeout_microseconds,
            allow_timeout_override=True,
            max_queue_size=queue.max_queue_size,
        ),
    )


def _warmup(config: TritonConfig) -> list[Any]:
    """One picture, and as many as go into a batch: the first caller of either waits for nothing."""
    sizes = {"one": 1, "full": config.max_batch_size} if config.max_batch_size > 1 else {"one": 1}
    if config.max_batch_size == 0:
        sizes = {"one": 0}
    return [
        model_config_pb2.ModelWarmup(
            name=name,
            batch_size=size,
            inputs={
                each.name: model_config_pb2.ModelWarmup.Input(
                    data_type=model_config_pb2.DataType.Value(each.data_type), dims=each.dims, zero_data=True
                )
                for each in config.inputs
            },
        )
        for name, size in sizes.items()
    ]
