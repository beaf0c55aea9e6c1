"""`metadata.json` as the gateway executes it: pictures to tensors, tensors to predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from serving.domain.geometry import Size
from serving.domain.metadata import (
    Head,
    LabelledClass,
    Measured,
    ModelInfo,
    Part,
    Postprocessing,
    Preprocessing,
    SchemaVersion,
    TaskType,
    TensorSpec,
    quoted,
)
from serving.domain.options import PredictionOptions
from serving.errors import InvalidRequest, OperatorError

MAX_INPUT_PIXELS = 4096 * 4096
"""A batch of such pictures has to fit into memory."""

MAX_REFUSAL_CHARACTERS = 300

_WITHOUT_MODEL_FILE: SchemaVersion = "1.0"
_JSON_OBJECT = TypeAdapter(dict[str, Any])
_TASK_OF_HEAD: dict[Head, TaskType] = {
    "yolo_raw": "detection",
    "yolo_end_to_end": "detection",
    "classification": "classification",
}
_BOXES_OF_HEAD: dict[Head, str] = {"yolo_raw": "cxcywh", "yolo_end_to_end": "xyxy"}
_ANTIALIAS = {"letterbox": False, "center_crop": True}
_OUTPUT_LAYOUT = {"yolo_raw": "NCA"}
"""Of heads whose dimensions could change places; those of the others are told by their sizes."""


class ModelContract(Part):
    """One served model: everything between a decoded picture and its predictions, checked on construction."""

    # In this order, so that what is said first is what matters most.
    schema_version: SchemaVersion
    model_info: ModelInfo
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    input_spec: tuple[TensorSpec]
    output_spec: tuple[TensorSpec]
    classes: tuple[LabelledClass, ...] = Field(min_length=1)
    performance: Measured = None
    validation: Measured = None
    sha256: str

    @classmethod
    def parse(cls, metadata_json: bytes) -> ModelContract:
        """Raises OperatorError, naming the field, where the contract is not one we fully understand.

        What it says is short and printable, whatever the file holds.
        """
        digest = hashlib.sha256(metadata_json).hexdigest()
        try:
            raw = _JSON_OBJECT.validate_json(metadata_json)
            return cls.model_validate({**raw, "sha256": digest})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            why = first["msg"].removeprefix("Value error, ")
            said = f"metadata.json, {where}: {why}" if where else f"metadata.json, {why}"
            raise OperatorError(_short_and_printable(said)) from exc

    @model_validator(mode="after")
    def _fits_together(self) -> ModelContract:
        _require_model_file(self)
        _require_fitting_classes(self)
        _require_parts_of_one_head(self)
        _require_fitting_input(self)
        _require_fitting_output(self)
        return self

    @property
    def name(self) -> str:
        return self.model_info.model_name

    @property
    def task(self) -> TaskType:
        return self.model_info.task_type

    @property
    def head(self) -> Head:
        return self.postprocessing.output_format.head

    @property
    def suppresses_duplicates(self) -> bool:
        """Whether boxes still have to compete when they leave the model."""
        nms = self.postprocessing.nms
        return nms is not None and nms.enabled and not nms.embedded

    @property
    def takes_iou_threshold(self) -> bool:
        """Whether boxes compete anywhere, here or inside the model file."""
        nms = self.postprocessing.nms
        return nms is not None and nms.enabled

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

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    @cached_property
    def _class_ids(self) -> Mapping[str, int]:
        """By name; of classes that share one, the first."""
        return {entry.name: entry.id for entry in reversed(self.classes)}

    def options(
        self,
        *,
        confidence_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: tuple[str | int, ...] | None = None,
    ) -> PredictionOptions:
        """Fill what the caller left out.

        Raises InvalidRequest for a class this model does not have, and for what its head cannot be asked.
        """
        asked: dict[str, Any] = {
            "confidence_threshold": confidence_threshold,
            "iou_threshold": iou_threshold,
            "max_detections": max_detections,
            "class_ids": None if classes is None else frozenset(self._class_id(entry) for entry in classes),
        }
        options = replace(
            self.postprocessing.defaults,
            **{name: value for name, value in asked.items() if value is not None},
        )
        if iou_threshold is not None and not self.takes_iou_threshold:
            what = "classes, and no boxes" if self.task == "classification" else "boxes, and drops none"
            raise InvalidRequest(f"iou_threshold: the model {self.name!r} answers {what} that could overlap.")
        nms = self.postprocessing.nms
        if nms is not None and nms.embedded:
            _require_within_the_graph(options, nms.defaults, self.name)
        return options

    def _class_id(self, name_or_id: str | int) -> int:
        if isinstance(name_or_id, str) and name_or_id in self._class_ids:
            return self._class_ids[name_or_id]
        text = str(name_or_id)
        if text.isascii() and text.isdigit() and int(text) < len(self.classes):
            return int(text)
        raise InvalidRequest(f"The model {self.name!r} has no class {name_or_id!r}.")


def _require_within_the_graph(options: PredictionOptions, embedded: PredictionOptions, model: str) -> None:
    """What was dropped inside the model file cannot be asked for afterwards."""
    fixed = f"is fixed inside the model {model!r}:"
    if options.confidence_threshold < embedded.confidence_threshold:
        raise InvalidRequest(
            f"confidence_threshold {fixed} {embedded.confidence_threshold}; only more can be asked for."
        )
    if options.iou_threshold != embedded.iou_threshold:
        raise InvalidRequest(f"iou_threshold {fixed} {embedded.iou_threshold}.")
    if options.max_detections > embedded.max_detections:
        raise InvalidRequest(
            f"max_detections {fixed} {embedded.max_detections}; only fewer can be asked for."
        )


def _require_model_file(contract: ModelContract) -> None:
    if contract.model_info.model_file is None and contract.schema_version != _WITHOUT_MODEL_FILE:
        raise ValueError("model_info.model_file: is missing, which only version 1.0 allows")


def _require_fitting_classes(contract: ModelContract) -> None:
    if [entry.id for entry in contract.classes] != list(range(len(contract.classes))):
        raise ValueError("classes: must be numbered 0, 1, 2 … in order")


def _require_fitting_input(contract: ModelContract) -> None:
    resize, taken = contract.preprocessing.resize, contract.input
    width, height = resize.size
    if width * height > MAX_INPUT_PIXELS:
        raise ValueError(
            f"preprocessing.resize.size: {width} x {height} are more than the {MAX_INPUT_PIXELS} pixels that "
            "this gateway makes of a picture"
        )
    if taken.shape[1:] != (height, width, 3) or taken.dtype != "uint8":
        raise ValueError(f"input_spec: a {width} x {height} picture does not fit {_described(taken)}")
    for part, tensor in (("input_spec", taken), ("output_spec", contract.output)):
        if tensor.shape[:1] not in {(-1,), (1,)}:
            raise ValueError(f"{part}.0.shape: batches come in any size, not as {_shape(tensor)}")
    if taken.shape[0] != contract.output.shape[0]:
        raise ValueError("output_spec.0.shape: its batch is not the input's")
    if taken.layout not in {"NHWC", None}:
        raise ValueError(f"input_spec.0.layout: pictures are NHWC, not {quoted(taken.layout)}")
    if resize.antialias != _ANTIALIAS[resize.method]:
        how = "with" if _ANTIALIAS[resize.method] else "without"
        raise ValueError(f"preprocessing.resize.antialias: {resize.method} is done {how} it here")
    if resize.method == "center_crop" and width != height:
        raise ValueError(f"preprocessing.resize.size: center_crop cuts squares, not {width} x {height}")
    if width % resize.stride or height % resize.stride:
        raise ValueError(f"preprocessing.resize.stride: {resize.stride} does not divide {width} x {height}")


def _require_parts_of_one_head(contract: ModelContract) -> None:
    head, parts = contract.head, contract.postprocessing
    form = parts.output_format
    if _TASK_OF_HEAD[head] != contract.task:
        raise ValueError(f"postprocessing.output_format.head: {head} is not for {contract.task}")
    boxes = {
        "nms": parts.nms,
        "output_format.bbox_format": form.bbox_format,
        "output_format.coordinates": form.coordinates,
    }
    classes = {"classification": parts.classification}
    for fields, belong in ((boxes, head in _BOXES_OF_HEAD), (classes, head == "classification")):
        for name, value in fields.items():
            if belong and value is None:
                raise ValueError(f"postprocessing.{name}: is missing, which a {head} head needs")
            if not belong and value is not None:
                raise ValueError(f"postprocessing.{name}: has no meaning for a {head} head")
    if form.bbox_format != _BOXES_OF_HEAD.get(head):
        raise ValueError(
            f"postprocessing.output_format.bbox_format: a {head} head answers {_BOXES_OF_HEAD[head]} boxes"
        )
    if parts.nms is not None and parts.nms.embedded and head != "yolo_end_to_end":
        raise ValueError("postprocessing.nms.embedded: only end-to-end rows went through suppression")
    if parts.nms is not None and parts.nms.embedded and not parts.nms.enabled:
        raise ValueError("postprocessing.nms.enabled: what is embedded in the model file is not off")


def _require_fitting_output(contract: ModelContract) -> None:
    head, given = contract.head, contract.output
    if contract.task == "detection" and contract.preprocessing.resize.method != "letterbox":
        raise ValueError("preprocessing.resize.method: boxes are traced back through a letterbox only")
    if given.dtype != "float32":
        raise ValueError(f"output_spec.0.dtype: must be float32, not {quoted(given.dtype)}")
    if given.layout not in {_OUTPUT_LAYOUT.get(head, given.layout), None}:
        raise ValueError(
            f"output_spec.0.layout: a {head} head is {_OUTPUT_LAYOUT[head]}, not {quoted(given.layout)}"
        )
    count = len(contract.classes)
    fits = {
        "yolo_raw": len(given.shape) == 3 and given.shape[1] == 4 + count,
        "yolo_end_to_end": len(given.shape) == 3 and given.shape[2] == 6,
        "classification": len(given.shape) == 2 and given.shape[1] == count,
    }
    if not fits[head]:
        raise ValueError(f"output_spec: {count} classes do not fit a {head} output of {_shape(given)}")


def _described(tensor: TensorSpec) -> str:
    return f"{quoted(tensor.dtype)} {_shape(tensor)}"


def _shape(tensor: TensorSpec) -> str:
    return quoted(list(tensor.shape))


def _short_and_printable(text: str) -> str:
    cut = text if len(text) <= MAX_REFUSAL_CHARACTERS else text[: MAX_REFUSAL_CHARACTERS - 1] + "…"
    return "".join(character if character.isprintable() else "�" for character in cut)
