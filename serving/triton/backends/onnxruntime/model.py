"""Triton's `onnxruntime` backend, in Python, for servers that come without NVIDIA's C++ one.

Triton runs one copy of this file in a process of its own for every model instance. It reads the parts of
`config.pbtxt` that the gateway's models use, by NVIDIA's names and with NVIDIA's meaning:

- `input`, `output`, `max_batch_size`, `default_model_filename`;
- `instance_group`: one session per instance, on the CPU or on the instance's CUDA device;
- `parameters`: `intra_op_thread_count`, `inter_op_thread_count` (0: one per core), `execution_mode`
  (0: sequential, 1: parallel).

Imports only what that process has: numpy, ONNX Runtime and Triton's own module.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]
"""Tensor name to array. Inputs are views into the server's memory: read them, never write or keep them."""

_SESSION_PARAMETERS = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Raises TritonModelException: its text becomes the reason, in Triton, why the model did not load."""
        config = json.loads(args["model_config"])
        try:
            self._session = _open_session(config, args)
        except Exception as exc:
            raise pb_utils.TritonModelException(f"model {args['model_name']!r}: {exc}") from exc
        self._output_names = tuple(entry["name"] for entry in config["output"])
        self._joins = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order; a request that fails carries its own error."""
        if len(requests) == 1 or not self._joins:
            return [self._run_one(request, _inputs(request)) for request in requests]
        feeds = [_inputs(request) for request in requests]
        responses: list[Any] = [None] * len(requests)
        for indices in _joinable(feeds):
            answered = self._run_joined([requests[i] for i in indices], [feeds[i] for i in indices])
            for index, response in zip(indices, answered, strict=True):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        del self._session

    def _run_one(self, request: Any, feed: Arrays) -> Any:
        names = self._wanted([request])
        try:
            return _response(request, dict(zip(names, self._session.run(names, feed), strict=True)))
        except Exception as exc:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc)))

    def _run_joined(self, requests: Sequence[Any], feeds: Sequence[Arrays]) -> list[Any]:
        """Run requests of one shape as one batch; if it fails, one by one, so that only the culprit fails."""
        if len(requests) == 1:
            return [self._run_one(requests[0], feeds[0])]
        names = self._wanted(requests)
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        try:
            outputs = self._session.run(names, _join(feeds))
            parts = [_split(name, output, sizes) for name, output in zip(names, outputs, strict=True)]
        except Exception:
            return [self._run_one(request, feed) for request, feed in zip(requests, feeds, strict=True)]
        return [
            _response(request, dict(zip(names, part, strict=True)))
            for request, part in zip(requests, zip(*parts, strict=True), strict=True)
        ]

    def _wanted(self, requests: Sequence[Any]) -> list[str]:
        wanted = {name for request in requests for name in request.requested_output_names()}
        return [name for name in self._output_names if name in wanted]


def _inputs(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _joinable(feeds: Iterable[Arrays]) -> Iterable[list[int]]:
    """Group the indices of feeds that differ in nothing but the length of their first axis."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, feed in enumerate(feeds):
        groups[tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(feed.items()))].append(
            index
        )
    return groups.values()


def _join(feeds: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _split(name: str, output: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    if output.ndim == 0 or len(output) != sum(sizes):
        raise ValueError(
            f"output {name!r} of shape {list(output.shape)} does not follow a batch of {sum(sizes)}"
        )
    return np.split(output, np.cumsum(sizes[:-1]))


def _response(request: Any, outputs: Arrays) -> Any:
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, outputs[name]) for name in outputs if name in request.requested_output_names()]
    )


def _open_session(config: dict[str, Any], args: dict[str, str]) -> ort.InferenceSession:
    path = Path(
        args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx"
    )
    if not path.is_file():
        raise FileNotFoundError(f"version {args['model_version']} has no file {path.name!r}")
    _warn_of_what_is_not_honoured(config)
    session = ort.InferenceSession(
        path,
        session_options(config["parameters"]),
        execution_providers(
            args["model_instance_kind"], int(args["model_instance_device_id"]), ort.get_available_providers()
        ),
    )
    _require_known("input", config["input"], [node.name for node in session.get_inputs()])
    _require_known("output", config["output"], [node.name for node in session.get_outputs()])
    return session


def session_options(parameters: dict[str, dict[str, str]]) -> ort.SessionOptions:
    """Raises ValueError, naming the parameter, where one is not a number."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors reach us as exceptions, and need not be in the log as well
    # Threads that spin between runs take the cores that the next picture is decoded on. Measured on two cores
    # with a 320 px detector: one caller 52 pictures/s without spinning, 19 with; 16 callers 92 either way.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = _number(parameters, "intra_op_thread_count")
    options.inter_op_num_threads = _number(parameters, "inter_op_thread_count")
    if _number(parameters, "execution_mode"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    return options


def _number(parameters: dict[str, dict[str, str]], name: str) -> int:
    text = parameters.get(name, {}).get("string_value", "0")
    if not text.isdecimal():
        raise ValueError(f"parameter {name!r} is a whole number, not {text!r}")
    return int(text)


def execution_providers(kind: str, device_id: int, available: Sequence[str]) -> list[Any]:
    """What ONNX Runtime is to run on. Triton has turned KIND_AUTO into CPU or GPU before an instance starts.

    Raises RuntimeError where a GPU is asked for and this ONNX Runtime was built without CUDA: to run on the
    CPU instead would be a silent tenfold slowdown.
    """
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise RuntimeError("KIND_GPU needs an ONNX Runtime with CUDA (onnxruntime-gpu); this one has none")
    return [("CUDAExecutionProvider", {"device_id": str(device_id)}), "CPUExecutionProvider"]


def _warn_of_what_is_not_honoured(config: dict[str, Any]) -> None:
    ignored = sorted(set(config["parameters"]) - set(_SESSION_PARAMETERS))
    ignored += sorted({"graph", "execution_accelerators"} & set(config["optimization"]))
    if ignored:
        pb_utils.Logger.log_warn(
            f"model {config['name']!r}: the Python onnxruntime backend ignores {ignored}"
        )


def _require_known(what: str, configured: Sequence[dict[str, Any]], in_model: Sequence[str]) -> None:
    for entry in configured:
        if entry["name"] not in in_model:
            raise ValueError(f"the model file has no {what} {entry['name']!r}, only {sorted(in_model)}")
        if entry["data_type"] == "TYPE_STRING":
            raise ValueError(f"{what} {entry['name']!r}: text tensors are not supported")
