"""The parts of `metadata.json`, each with the values that the gateway can execute.

The file is data written by the export pipeline (`model_repo/metadata.schema.json` is its home). It is read
leniently, so unknown fields are let through, but a *value* we do not know is refused: guessing how a model
wants its pictures is how a gateway starts to answer differently from the user's own run.

Not looked at, because with `embedded` preprocessing they happen inside the model file: `normalize`,
`output_layout`. Nor is what is said to others: `runtime_wrappers`, `source_checkpoint_sha256`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
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

QUOTED_CHARACTERS = 40
"""Of a value that is not one of ours: what we say of it reaches clients, logs and terminals."""

# Strict: text that spells a number, and a boolean, are no numbers.
Whole = Annotated[int, Field(strict=True)]
Side = Annotated[Whole, Field(ge=1, le=16_384)]
Threshold = Annotated[float, Field(strict=True, ge=0, le=1)]
MostPredictions = Annotated[Whole, Field(ge=1, le=1000)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
VersionNumber = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*$")]


def quoted(value: object) -> str:
    """Printable, and cut where it is long."""
    return f"{value!r:.{QUOTED_CHARACTERS}}"


def _readable_version(version: str) -> str:
    if not re.fullmatch(r"1\.[0-9]+", version):
        raise ValueError(f"this gateway reads version 1 of metadata.json, not {quoted(version)}")
    return version


def _served_task(task: object) -> object:
    if isinstance(task, str) and task not in get_args(TaskType):
        raise ValueError(
            f"this gateway serves {' and '.join(get_args(TaskType))}; the model is for {quoted(task)}"
        )
    return task


def _as_json(measured: dict[str, Any] | None) -> dict[str, Any] | None:
    for number in _numbers_in(measured):
        # JSON has no infinity, and most of its readers, our writer among them, no longer integers.
        writable = -(2**63) <= number < 2**64 if isinstance(number, int) else math.isfinite(number)
        if not writable:
            raise ValueError("holds a number that cannot be passed on")
    return measured


def _numbers_in(value: object) -> Iterator[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(part)


SchemaVersion = Annotated[str, AfterValidator(_readable_version)]
"""MAJOR.MINOR. What a later minor version adds may be ignored, by the schema's own rule."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ModelFile(Part):
    name: FileName
    sha256: Sha256
    size_bytes: Annotated[Whole, Field(ge=1)]


class ModelInfo(Part):
    """model_file: absent from what was written before version 1.1, and from nothing later."""

    task_type: Annotated[TaskType, BeforeValidator(_served_task)]
    framework: str
    model_name: FileName
    export_format: Literal["onnx", "tensorrt", "openvino", "torchscript"]
    version: VersionNumber
    model_file: ModelFile | None = None


class Resize(Part):
    method: Literal["letterbox", "center_crop"]
    size: tuple[Side, Side]
    fill_value: Annotated[Whole, Field(ge=0, le=255)]
    stride: Annotated[Whole, Field(ge=1)] = 1
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
    shape: tuple[Whole, ...]
    dtype: str
    layout: str | None = None


class LabelledClass(Part):
    id: Whole
    name: str


Measured = Annotated[dict[str, Any] | None, AfterValidator(_as_json)]
"""What the export found out, shown to people as it is."""
