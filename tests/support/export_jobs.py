"""Job folders as the stages before packaging leave them, for one tiny graph of each kind that is exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export_pipeline.facts import CheckpointFacts, Head, ModelFacts, Normalize, Resize, Tensor
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.request import TaskType, read_request
from export_pipeline.stages.package import write_entry

SIDE_PX = 32
CLASS_NAMES = ("circle", "square", "triangle", "star")
PERFORMANCE = {
    "latency_ms": {"p50": 14.1, "p90": 15.2},
    "throughput_ips": 70.5,
    "hardware": "two cores",
    "batch_size": 1,
}
RAW_ROWS = np.array(
    [[16, 8], [16, 8], [10, 4], [10, 4], [0.9, 0.1], [0.1, 0.8], [0.0, 0.0], [0.0, 0.0]], np.float32
)
"""Two anchors: a circle in the middle of the picture and a square in its first quarter."""
FINAL_ROWS = np.array([[11, 11, 21, 21, 0.9, 0], [6, 6, 10, 10, 0.8, 1], [0, 0, 0, 0, 0, 0]], np.float32)
"""The same as final rows, and a row of padding."""


@dataclass(frozen=True)
class Kind:
    """What a graph answers, whatever the picture. rows: by output, without the batch."""

    task_type: TaskType
    head: Head
    rows: Mapping[str, NDArray[np.float32]]
    layouts: tuple[str, ...]
    nms_embedded: bool = False
    fixed_batch: bool = False
    half: bool = False
    embedded: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = CLASS_NAMES


_RAW = {"predictions": RAW_ROWS}
_MASKS = {
    "predictions": np.concatenate([RAW_ROWS, np.zeros((32, 2), np.float32)]),
    "prototypes": np.zeros((32, 8, 8), np.float32),
}
KINDS = {
    "raw": Kind("detection", "yolo_raw", _RAW, ("NCA",)),
    "end_to_end": Kind("detection", "yolo_end_to_end", {"predictions": FINAL_ROWS}, ("NRF",)),
    "embedded_nms": Kind(
        "detection",
        "yolo_end_to_end",
        {"predictions": FINAL_ROWS},
        ("NRF",),
        nms_embedded=True,
        options={"embed_nms": True},
    ),
    "half": Kind("detection", "yolo_raw", _RAW, ("NCA",), half=True, options={"precision": "fp16"}),
    "fixed": Kind(
        "detection",
        "yolo_raw",
        _RAW,
        ("NCA",),
        fixed_batch=True,
        options={"dynamic_axes": False, "max_batch_size": 1},
    ),
    "normalised_outside": Kind(
        "detection", "yolo_raw", _RAW, ("NCA",), embedded=False, options={"embed_preprocessing": False}
    ),
    "classification": Kind(
        "classification",
        "classification",
        {"scores": np.array([0.1, 0.6, 0.1, 0.2], np.float32)},
        ("NC",),
    ),
    "segmentation": Kind("segmentation", "yolo_raw_segmentation", _MASKS, ("NCA", "NCHW")),
}


def make_job(
    path: Path,
    kind: Kind | str = "raw",
    *,
    name: str = "shapes",
    version: int = 1,
    checkpoint: str = "best.pt",
    **asked: Any,
) -> tuple[JobFolder, JobRecord]:
    """A job whose export is done. Another `checkpoint` gives another model file."""
    kind = KINDS[kind] if isinstance(kind, str) else kind
    folder = JobFolder(path)
    request = read_request(
        {"checkpoint": checkpoint, "name": name, "export_config": dict(kind.options), **asked}
    )
    record = JobRecord(job_id=f"job-of-{checkpoint}", version=version, request=request)
    folder.create(record)
    graph = make_graph(kind, checkpoint).SerializeToString()
    folder.write("checkpoint/best.pt", checkpoint.encode())
    folder.write("model/model.onnx", graph)
    folder.write("model/model.json", model_facts(kind, graph, record).to_json())
    folder.write("checkpoint.json", checkpoint_facts(kind, checkpoint).to_json())
    return folder, record


def certify(folder: JobFolder) -> dict[str, Any]:
    """Leave a certificate that has passed, and answer what metadata.json says of it."""
    subject = {
        "model_sha256": folder.model().sha256,
        "checkpoint_sha256": folder.checkpoint().sha256,
    }
    report = folder.write("validation.json", json.dumps({"passed": True, "subject": subject}).encode())
    return {
        "passed": True,
        "report_sha256": hashlib.sha256(report.read_bytes()).hexdigest(),
        "pictures": 2,
        "predictions": 9,
        "paths": {"file": {"iou_min": 0.999, "confidence_max": 0.0001, "unmatched": 0}},
    }


def make_entry(path: Path, kind: Kind | str = "raw", *, certified: bool = True, **job: Any) -> Path:
    """The Triton entry of a job in `path`."""
    folder, record = make_job(path, kind, **job)
    root = path / "made"
    root.mkdir()
    validation = certify(folder) if certified else None
    return write_entry(folder, record, root, performance=PERFORMANCE, validation=validation)


def checkpoint_facts(kind: Kind, checkpoint: str) -> CheckpointFacts:
    return CheckpointFacts(
        framework="ultralytics",
        framework_version="8.4.190",
        architecture="yolo11n",
        sha256=hashlib.sha256(checkpoint.encode()).hexdigest(),
        size_bytes=len(checkpoint),
        task_type=kind.task_type,
        class_names=kind.class_names,
        stride=32,
        parameters=1000,
        trained_size_wh=(SIDE_PX, SIDE_PX),
        heads=(kind.head,),
    )


def model_facts(kind: Kind, graph: bytes, record: JobRecord) -> ModelFacts:
    method: Literal["center_crop", "letterbox"] = (
        "center_crop" if kind.task_type == "classification" else "letterbox"
    )
    batch = 1 if kind.fixed_batch else -1
    pixels = (SIDE_PX, SIDE_PX, 3) if kind.embedded else (3, SIDE_PX, SIDE_PX)
    return ModelFacts(
        file="model.onnx",
        sha256=hashlib.sha256(graph).hexdigest(),
        size_bytes=len(graph),
        export_format="onnx",
        precision="fp16" if kind.half else "fp32",
        opset_version=17,
        ir_version=8,
        head=kind.head,
        nms_embedded=kind.nms_embedded,
        preprocessing_embedded=kind.embedded,
        max_batch_size=record.request.export_config.max_batch_size,
        resize=Resize(method=method, size=(SIDE_PX, SIDE_PX), stride=32, antialias=method == "center_crop"),
        normalize=Normalize(),
        inputs=(
            Tensor(
                name="images",
                shape=(batch, *pixels),
                dtype="uint8" if kind.embedded else "float32",
                layout="NHWC" if kind.embedded else "NCHW",
                description="Pictures.",
            ),
        ),
        outputs=tuple(
            Tensor(
                name=name,
                shape=(batch, *rows.shape),
                dtype="float16" if kind.half else "float32",
                layout=layout,
                description="What it found.",
                parts={"mask_coefficients": (8, 40)} if layout == "NCA" and rows.shape[0] == 40 else {},
            )
            for (name, rows), layout in zip(kind.rows.items(), kind.layouts, strict=True)
        ),
        made_with={"onnx": "1.23.2"},
    )


def make_graph(kind: Kind, checkpoint: str = "best.pt") -> onnx.ModelProto:
    """Answers its rows for each picture of the batch; as many operators see the pixels as it takes."""
    batch = 1 if kind.fixed_batch else "batch"
    pixels = [SIDE_PX, SIDE_PX, 3] if kind.embedded else [3, SIDE_PX, SIDE_PX]
    taken = TensorProto.UINT8 if kind.embedded else TensorProto.FLOAT
    given = TensorProto.FLOAT16 if kind.half else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    outputs = []
    for name, rows in kind.rows.items():
        column = np.array([-1, *[1] * rows.ndim], np.int64)
        constants += [numpy_helper.from_array(column, f"{name}_column")]
        constants += [numpy_helper.from_array(rows, f"{name}_rows")]
        nodes += [
            helper.make_node("Reshape", ["nothing", f"{name}_column"], [f"{name}_nothing"]),
            helper.make_node("Add", [f"{name}_nothing", f"{name}_rows"], [f"{name}_full"]),
            helper.make_node("Cast", [f"{name}_full"], [name], to=given),
        ]
        outputs += [helper.make_tensor_value_info(name, given, [batch, *rows.shape])]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("images", taken, [batch, *pixels])], outputs, constants
    )
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], doc_string=checkpoint
    )
    onnx.checker.check_model(model, full_check=True)
    return model
