"""`metadata.json`: from what the stages found out to the contract that everything executes, by its schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path, PurePath
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import best_match

from export_pipeline.errors import BadInput, ExportError, reading, writing
from export_pipeline.facts import CheckpointFacts, Head, ModelFacts, Tensor
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.request import ExportConfig

SCHEMA_FILE: Final = Path(__file__).with_name("metadata.schema.json")
SCHEMA_VERSION: Final = "1.1"
TOP_K: Final = 5
CENTRE_BOXES: Final = ("yolo_raw", "yolo_end_to_end_obb")
"""Heads, by how their name begins, whose boxes are a centre with a width and a height."""


def build_metadata(
    folder: JobFolder,
    record: JobRecord,
    *,
    performance: dict[str, Any] | None = None,
    validation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `metadata.schema.json` asks for, from the job's facts; the two parts are in its form already.

    Raises BadInput where the model's output has room for other classes than the checkpoint names, ExportError
    for what the schema does not allow.
    """
    checkpoint, model = folder.checkpoint(), folder.model()
    _require_a_score_for_each_class(checkpoint, model)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "model_info": {
            "framework": checkpoint.framework,
            "task_type": checkpoint.task_type,
            "model_name": record.request.name,
            "export_format": model.export_format,
            "version": str(record.version),
            "source_checkpoint_sha256": checkpoint.sha256,
            "model_file": {"name": model.file, "sha256": model.sha256, "size_bytes": model.size_bytes},
        },
        "preprocessing": _preprocessing(model),
        "postprocessing": _postprocessing(model, record.request.export_config, len(checkpoint.class_names)),
        "input_spec": [_tensor(each) for each in model.inputs],
        "output_spec": [_tensor(each) for each in model.outputs],
        "classes": [{"id": index, "name": name} for index, name in enumerate(checkpoint.class_names)],
        **({} if performance is None else {"performance": performance}),
        **({} if validation is None else {"validation": validation}),
        "runtime_wrappers": ["python"],
    }
    require_valid(metadata)
    return metadata


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Raises ExportError, naming the field, for what the schema does not allow; nothing is written then."""
    require_valid(metadata)
    try:
        text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as exc:
        raise ExportError(f"metadata.json cannot be written: {exc}.") from exc
    with writing(path):
        path.write_bytes(text.encode() + b"\n")


def require_valid(metadata: Any) -> None:
    """Raises ExportError, naming the field that the schema does not allow."""
    error = best_match(_validator().iter_errors(metadata))
    if error is not None:
        where = ".".join(map(str, error.absolute_path)) or "top level"
        raise ExportError(f"metadata.json, {where}: {error.message}")


def read_metadata(path: Path) -> dict[str, Any]:
    """Leniently: whatever a later minor version of the schema added is let through.

    Raises BadInput where there is none, and where its model, version or file cannot be told.
    """
    with reading(path, "the contract"):
        content = path.read_bytes()
    return parse_metadata(content, str(path))


def parse_metadata(content: bytes, where: str) -> dict[str, Any]:
    """As `read_metadata`, of a file that was read already."""
    try:
        metadata: dict[str, Any] = json.loads(content)
        info = metadata["model_info"]
        identity = (info["model_name"], info["task_type"], info["model_file"]["name"])
        major = str(metadata["schema_version"]).partition(".")[0]
        known = all(isinstance(each, str) for each in identity) and int(info["version"]) >= 1
        known = known and isinstance(info["model_file"]["sha256"], str)
        known = known and PurePath(identity[2]).name == identity[2]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BadInput(f"{where} is not a model's metadata.json: {type(exc).__name__}: {exc}.") from exc
    if not known or major != SCHEMA_VERSION.partition(".")[0]:
        raise BadInput(f"{where} is not a metadata.json of version {SCHEMA_VERSION}, or of a later minor.")
    return metadata


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes()))


def _require_a_score_for_each_class(checkpoint: CheckpointFacts, model: ModelFacts) -> None:
    """An end-to-end head names one class a row, so only raw heads and classifiers can be counted."""
    named = len(checkpoint.class_names)
    output = model.outputs[0]
    if model.head != "classification" and not model.head.startswith("yolo_raw"):
        return
    boxes = 4 if model.head.startswith("yolo_raw") else 0
    others = sum(
        end - begin for name, (begin, end) in output.parts.items() if name not in {"boxes", "scores"}
    )
    scored = output.shape[1] - boxes - others
    if scored != named:
        raise BadInput(f"The checkpoint names {named} classes, and the model's output has {scored} scores.")


def _preprocessing(model: ModelFacts) -> dict[str, Any]:
    taken = model.inputs[0]
    return {
        "resize": model.resize.model_dump(mode="json"),
        "normalize": model.normalize.model_dump(mode="json"),
        "format": {
            "input_layout": taken.layout,
            "output_layout": "NCHW",
            "color_space": "RGB",
            "dtype": taken.dtype,
        },
        "embedded": model.preprocessing_embedded,
    }


def _postprocessing(model: ModelFacts, config: ExportConfig, class_count: int) -> dict[str, Any]:
    if model.head == "classification":
        top = {"top_k": min(TOP_K, class_count), "confidence_threshold": 0.0}
        return {"classification": top, "output_format": {"head": model.head}}
    if not model.head.startswith("yolo_"):
        return {"output_format": {"head": model.head}}
    return {
        "nms": {
            "enabled": model.nms_embedded or model.head.startswith("yolo_raw"),
            "embedded": model.nms_embedded,
            "iou_threshold": config.iou_threshold,
            "confidence_threshold": config.confidence_threshold,
            "max_detections": config.max_detections,
            "class_agnostic": False,
        },
        "output_format": {
            "head": model.head,
            "bbox_format": _bbox_format(model.head),
            "coordinates": "pixels",
        },
    }


def _bbox_format(head: Head) -> str:
    return "cxcywh" if head.startswith(CENTRE_BOXES) else "xyxy"


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return tensor.model_dump(mode="json", include={"name", "shape", "dtype", "layout", "description"})
