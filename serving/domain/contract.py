"""`metadata.json` as the gateway executes it: pictures to tensors, rows to boxes.

The file is data written by the export pipeline (`model_repo/metadata.schema.json` is its home). It is read
leniently, so unknown fields are let through, but a *value* we do not know is refused: guessing how a model
wants its pictures is how a gateway starts to answer differently from the user's own run.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from serving.domain.geometry import Size
from serving.domain.options import DetectionOptions
from serving.errors import InvalidRequest, OperatorError

Side = Annotated[int, Field(ge=1, le=16_384)]
Threshold = Annotated[float, Field(ge=0, le=1)]
Head = Literal["yolo_raw", "yolo_end_to_end"]
_JSON_OBJECT = TypeAdapter(dict[str, Any])


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ModelInfo(_Part):
    framework: str
    task_type: Literal["detection"]
    model_name: str
    export_format: str
    version: str


class Resize(_Part):
    method: Literal["letterbox"]
    size: tuple[Side, Side]
    fill_value: Annotated[int, Field(ge=0, le=255)]
    interpolation: Literal["bilinear"] = "bilinear"


class TensorFormat(_Part):
    input_layout: Literal["NHWC"]
    color_space: Literal["RGB", "BGR"]
    dtype: Literal["uint8"]


class Preprocessing(_Part):
    resize: Resize
    format: TensorFormat
    embedded: Literal[True]


class Nms(_Part):
    enabled: bool
    embedded: Literal[False]
    iou_threshold: Threshold
    confidence_threshold: Threshold
    max_detections: Annotated[int, Field(ge=1, le=1000)]
    class_agnostic: bool = False


class OutputFormat(_Part):
    head: Head
    bbox_format: Literal["cxcywh", "xyxy"]
    coordinates: Literal["pixels"]


class Postprocessing(_Part):
    nms: Nms
    output_format: OutputFormat


class TensorSpec(_Part):
    name: str
    shape: tuple[int, ...]
    dtype: str


class LabelledClass(_Part):
    id: int
    name: str


class ModelContract(_Part):
    """One served model: everything between a decoded picture and its boxes, checked on construction."""

    model_info: ModelInfo
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    input_spec: tuple[TensorSpec]
    output_spec: tuple[TensorSpec]
    classes: Annotated[tuple[LabelledClass, ...], Field(min_length=1)]
    sha256: str

    @classmethod
    def parse(cls, metadata_json: bytes) -> ModelContract:
        """Raises OperatorError, naming the field, where the contract is not one we fully understand."""
        digest = hashlib.sha256(metadata_json).hexdigest()
        try:
            raw = _JSON_OBJECT.validate_json(metadata_json)
            return cls.model_validate({**raw, "sha256": digest})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OperatorError(f"metadata.json, {where or 'top level'}: {first['msg']}") from exc

    @model_validator(mode="after")
    def _classes_match_the_output(self) -> ModelContract:
        if [entry.id for entry in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be numbered 0, 1, 2 … in order")
        expected_bbox_format = {"yolo_raw": "cxcywh", "yolo_end_to_end": "xyxy"}[self.head]
        if self.postprocessing.output_format.bbox_format != expected_bbox_format:
            raise ValueError(f"the {self.head} head answers {expected_bbox_format} boxes")
        width, height = self.preprocessing.resize.size
        if self.input.shape[1:] != (height, width, 3) or self.input.dtype != "uint8":
            raise ValueError(f"a {width} x {height} picture does not fit the input {self.input}")
        if self.output.dtype != "float32":
            raise ValueError(f"the output must be float32, not {self.output.dtype}")
        shape = self.output.shape
        if self.head == "yolo_raw" and (len(shape) != 3 or shape[1] != 4 + len(self.classes)):
            raise ValueError(f"{len(self.classes)} classes do not fit an output of shape {list(shape)}")
        if self.head == "yolo_end_to_end" and (len(shape) != 3 or shape[2] != 6):
            raise ValueError(f"an end-to-end head answers rows of 6 numbers, not {list(shape)}")
        return self

    @property
    def name(self) -> str:
        return self.model_info.model_name

    @property
    def head(self) -> Head:
        return self.postprocessing.output_format.head

    @property
    def input(self) -> TensorSpec:
        return self.input_spec[0]

    @property
    def output(self) -> TensorSpec:
        return self.output_spec[0]

    @property
    def input_size(self) -> Size:
        width, height = self.preprocessing.resize.size
        return Size(width, height)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    def options(
        self,
        *,
        confidence_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: tuple[str | int, ...] | None = None,
    ) -> DetectionOptions:
        """Fill what the caller left out. Raises InvalidRequest for a class this model does not have."""
        nms = self.postprocessing.nms
        return DetectionOptions(
            confidence_threshold=nms.confidence_threshold
            if confidence_threshold is None
            else confidence_threshold,
            iou_threshold=nms.iou_threshold if iou_threshold is None else iou_threshold,
            max_detections=nms.max_detections if max_detections is None else max_detections,
            class_ids=None if classes is None else frozenset(self._class_id(entry) for entry in classes),
            class_agnostic=nms.class_agnostic,
        )

    def _class_id(self, name_or_id: str | int) -> int:
        names = self.class_names
        if isinstance(name_or_id, str) and name_or_id in names:
            return names.index(name_or_id)
        text = str(name_or_id)
        if text.isascii() and text.isdigit() and int(text) < len(names):
            return int(text)
        raise InvalidRequest(f"The model {self.name!r} has no class {name_or_id!r}.")
