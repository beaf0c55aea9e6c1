"""What is asked of one export job, checked before anything is done. Option names are those of the API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from export_pipeline.errors import BadInput, Unsupported

ExportFormat = Literal["onnx", "tensorrt", "coreml", "tflite", "openvino", "torchscript"]
Framework = Literal["ultralytics", "timm", "huggingface"]
TaskType = Literal["detection", "classification", "segmentation", "pose", "obb", "embedding"]
Precision = Literal["fp32", "fp16", "int8"]
HeadChoice = Literal["native", "raw", "end_to_end"]

Side = Annotated[int, Field(ge=32, le=8192)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
GIBIBYTE = 1024**3


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=False)


class ExportConfig(_Asked):
    """How the graph is made.

    imgsz: (width, height) in pixels; None is what the checkpoint was trained with.
    embed_preprocessing: the graph takes uint8 NHWC pixels and normalises by itself.
    embed_nms: suppression inside the graph, at the thresholds below.
    head: `native` is what the checkpoint's own predict uses.
    """

    imgsz: tuple[Side, Side] | None = None
    opset_version: Annotated[int, Field(ge=11, le=21)] = 17
    dynamic_axes: bool = True
    embed_preprocessing: bool = True
    embed_nms: bool = False
    head: HeadChoice = "native"
    precision: Precision = "fp32"
    max_batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    confidence_threshold: Fraction = 0.25
    iou_threshold: Fraction = 0.45
    max_detections: Annotated[int, Field(ge=1, le=1000)] = 300

    @field_validator("imgsz", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.embed_nms and self.head == "end_to_end":
            raise ValueError("an end-to-end head needs no suppression: choose embed_nms or head=end_to_end")
        if not self.dynamic_axes and self.max_batch_size > 1:
            raise ValueError("a graph without dynamic_axes takes one picture: set max_batch_size to 1")
        return self


class FailThreshold(_Asked):
    """accuracy_drop_max: of mAP50-95 (detection) or top-1 (classification), checkpoint minus export."""

    accuracy_drop_max: Fraction = 0.01


class ValidationConfig(_Asked):
    """pictures: a folder of golden pictures; None takes two photographs that come with Ultralytics.

    dataset: an Ultralytics data set (`data.yaml`, or a folder of class folders); None measures no accuracy.
    max_pictures: of the data set, from its beginning; None is all of it.
    """

    enabled: bool = True
    pictures: Path | None = None
    dataset: Path | None = None
    max_pictures: Annotated[int, Field(ge=1)] | None = None
    fail_threshold: FailThreshold = FailThreshold()


class Limits(_Asked):
    """Of the isolated process: memory of all its processes together, and wall-clock time."""

    memory_bytes: Annotated[int, Field(ge=GIBIBYTE // 2)] = 12 * GIBIBYTE
    time_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0


class ExportRequest(_Asked):
    """checkpoint: a path, or a `file://` or `s3://` address.

    publish: a Triton model repository, or None. new_version: `name` may be taken already.
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    name: str
    export_format: ExportFormat = "onnx"
    framework: Framework = "ultralytics"
    publish: Path | None = None
    new_version: bool = False
    export_config: ExportConfig = ExportConfig()
    optimization_config: dict[str, Any] = {}
    validation_config: ValidationConfig = ValidationConfig()
    limits: Limits = Limits()

    @field_validator("name")
    @classmethod
    def _stays_in_the_repository(cls, name: str) -> str:
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(
                "a model is named with 1 to 128 letters, digits, dots, dashes and underscores, "
                "the first a letter or a digit"
            )
        return name

    @model_validator(mode="after")
    def _certified_before_published(self) -> Self:
        if self.publish is not None and not self.validation_config.enabled:
            raise ValueError("nothing is published without a certificate: leave validation_config.enabled on")
        return self


def read_request(values: dict[str, Any]) -> ExportRequest:
    """Raises BadInput naming each field that does not fit, Unsupported for what no exporter here does."""
    try:
        request = ExportRequest.model_validate(values)
    except ValidationError as exc:
        lines = (
            f"{'.'.join(map(str, error['loc'])) or 'options'}: {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors(include_url=False)
        )
        raise BadInput("\n".join(lines)) from exc
    _require_supported(request)
    return request


def _require_supported(request: ExportRequest) -> None:
    if request.export_format != "onnx":
        raise Unsupported(f"There is no exporter for {request.export_format} yet; there is one for onnx.")
    if request.framework != "ultralytics":
        raise Unsupported(f"There is no exporter for {request.framework} yet; there is one for ultralytics.")
    if request.export_config.precision == "int8":
        raise Unsupported("There is no int8 for onnx yet; there are fp32 and fp16.")
    if request.optimization_config:
        raise Unsupported(f"There is no optimisation yet: {', '.join(sorted(request.optimization_config))}.")
