"""The parts of `metadata.json`, each with the values that the gateway can execute.

The file is data written by the export pipeline (`model_repo/metadata.schema.json` is its home). It is read
leniently, so unknown fields are let through, but a *value* we do not know is refused: guessing how a model
wants its pictures is how a gateway starts to answer differently from the user's own run.

Not looked at, because with `embedded` preprocessing they happen inside the model file: `normalize`,
`output_layout`. Nor is what is said to others: `runtime_wrappers`, `source_checkpoint_sha256`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from serving.domain.options import PredictionOptions

TaskType = Literal["detection", "classification"]
Head = Literal["yolo_raw", "yolo_end_to_end", "classification"]

Side = Annotated[int, Field(ge=1, le=16_384)]
Threshold = Annotated[float, Field(ge=0, le=1)]
MostPredictions = Annotated[int, Field(ge=1, le=1000)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
VersionNumber = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*$")]


def _readable_version(version: str) -> str:
    if not re.fullmatch(r"1\.[0-9]+", version):
        raise ValueError(f"this gateway reads version 1 of metadata.json, not {version[:20]!r}")
    return version


def _served_task(task: object) -> object:
    if isinstance(task, str) and task not in get_args(TaskType):
        raise ValueError(
            f"this gateway serves {' and '.join(get_args(TaskType))}; the model is for {task[:50]}"
        )
    return task


SchemaVersion = Annotated[str, AfterValidator(_readable_version)]
"""MAJOR.MINOR. What a later minor version adds may be ignored, by the schema's own rule."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ModelFile(Part):
    name: FileName
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1)]


class ModelInfo(Part):
    """model_file: absent from what was written before version 1.1."""

    task_type: Annotated[TaskType, BeforeValidator(_served_task)]
    framework: str
    model_name: FileName
    export_format: Literal["onnx", "tensorrt", "openvino", "torchscript"]
    version: VersionNumber
    model_file: ModelFile | None = None


class Resize(Part):
    method: Literal["letterbox", "center_crop"]
    size: tuple[Side, Side]
    fill_value: Annotated[int, Field(ge=0, le=255)]
    stride: Annotated[int, Field(ge=1)] = 1
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: bool = False


class TensorFormat(Part):
    input_layout: Literal["NHWC"]
    color_space: Literal["RGB", "BGR"]
    dtype: Literal["uint8"]


class Preprocessing(Part):
    resize: Resize
    format: TensorFormat
    embedded: Literal[True]


class Nms(Part):
    """embedded: rows come without duplicates, and no more of them than these thresholds let through."""

    enabled: bool
    embedded: bool
    iou_threshold: Threshold
    confidence_threshold: Threshold
    max_detections: MostPredictions
    class_agnostic: bool = False

    @property
    def defaults(self) -> PredictionOptions:
        return PredictionOptions(
            confidence_threshold=self.confidence_threshold,
            max_detections=self.max_detections,
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )


class TopClasses(Part):
    top_k: MostPredictions
    confidence_threshold: Threshold

    @property
    def defaults(self) -> PredictionOptions:
        return PredictionOptions(confidence_threshold=self.confidence_threshold, max_detections=self.top_k)


class OutputFormat(Part):
    head: Head
    bbox_format: Literal["cxcywh", "xyxy"] | None = None
    coordinates: Literal["pixels"] | None = None


class Postprocessing(Part):
    """nms: of a detector, and of nothing else; so is classification of a classifier."""

    nms: Nms | None = None
    classification: TopClasses | None = None
    output_format: OutputFormat

    @property
    def defaults(self) -> PredictionOptions:
        """Of a request that states no options."""
        stated = self.nms or self.classification
        assert stated is not None  # ModelContract checks it
        return stated.defaults


class TensorSpec(Part):
    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str | None = None


class LabelledClass(Part):
    id: int
    name: str


Measured = dict[str, Any] | None
"""What the export found out, shown to people as it is."""
