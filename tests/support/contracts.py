"""The smallest contracts that models can have, for those that tests make up; and the sample's, changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from serving.domain.contract import ModelContract

SHAPES = (Path(__file__).parents[2] / "model_repo" / "shapes" / "metadata.json").read_bytes()
"""The sample's, written as the schema asks; so are its variants."""


def metadata(name: str, *, side: int, anchors: int, classes: list[str]) -> dict[str, Any]:
    """A `metadata.json`: square RGB pictures in, (batch, 4 + classes, anchors) out."""
    return {
        "schema_version": "1.0",
        "model_info": {
            "framework": "none",
            "task_type": "detection",
            "model_name": name,
            "export_format": "onnx",
            "version": "1",
        },
        "preprocessing": {
            "resize": {"method": "letterbox", "size": [side, side], "fill_value": 114},
            "format": {"input_layout": "NHWC", "color_space": "RGB", "dtype": "uint8"},
            "embedded": True,
        },
        "postprocessing": {
            "nms": {
                "enabled": True,
                "embedded": False,
                "iou_threshold": 0.45,
                "confidence_threshold": 0.25,
                "max_detections": 300,
            },
            "output_format": {"head": "yolo_raw", "bbox_format": "cxcywh", "coordinates": "pixels"},
        },
        "input_spec": [{"name": "images", "shape": [-1, side, side, 3], "dtype": "uint8"}],
        "output_spec": [
            {"name": "predictions", "shape": [-1, 4 + len(classes), anchors], "dtype": "float32"}
        ],
        "classes": [{"id": number, "name": each} for number, each in enumerate(classes)],
    }


def contract(name: str, *, side: int, anchors: int, classes: list[str]) -> ModelContract:
    return ModelContract.parse(orjson.dumps(metadata(name, side=side, anchors=anchors, classes=classes)))


def classifier_metadata(name: str, *, side: int, classes: list[str]) -> dict[str, Any]:
    """A `metadata.json`: the middle of square RGB pictures in, (batch, classes) scores out."""
    return {
        **metadata(name, side=side, anchors=1, classes=classes),
        "model_info": {
            "framework": "none",
            "task_type": "classification",
            "model_name": name,
            "export_format": "onnx",
            "version": "1",
        },
        "preprocessing": {
            "resize": {"method": "center_crop", "size": [side, side], "fill_value": 0, "antialias": True},
            "format": {"input_layout": "NHWC", "color_space": "RGB", "dtype": "uint8"},
            "embedded": True,
        },
        "postprocessing": {
            "classification": {"top_k": 5, "confidence_threshold": 0.0},
            "output_format": {"head": "classification"},
        },
        "output_spec": [{"name": "scores", "shape": [-1, len(classes)], "dtype": "float32"}],
    }


def classifier_contract(name: str, *, side: int, classes: list[str]) -> ModelContract:
    return ModelContract.parse(orjson.dumps(classifier_metadata(name, side=side, classes=classes)))


def changed(path: str, value: Any, document: bytes = SHAPES) -> bytes:
    """The document with one field, named by its dotted path, set to another value."""
    metadata = orjson.loads(document)
    *parents, last = path.split(".")
    target = metadata
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    target[int(last) if last.isdigit() else last] = value
    return orjson.dumps(metadata)


def _end_to_end() -> bytes:
    """The sample as it would be with suppression inside its graph."""
    metadata = orjson.loads(SHAPES)
    metadata["postprocessing"]["nms"]["embedded"] = True
    metadata["postprocessing"]["output_format"] |= {"head": "yolo_end_to_end", "bbox_format": "xyxy"}
    metadata["output_spec"][0] |= {"shape": [-1, 300, 6], "layout": "NRF"}
    return orjson.dumps(metadata)


def _classifier() -> bytes:
    """The sample as it would be if it named the picture instead of the shapes in it."""
    metadata = orjson.loads(SHAPES)
    metadata["model_info"]["task_type"] = "classification"
    metadata["preprocessing"]["resize"] |= {"method": "center_crop", "antialias": True}
    metadata["postprocessing"] = {
        "classification": {"top_k": 3, "confidence_threshold": 0.0},
        "output_format": {"head": "classification"},
    }
    metadata["output_spec"][0] |= {"shape": [-1, 4], "layout": "NC"}
    return orjson.dumps(metadata)


END_TO_END = _end_to_end()
CLASSIFIER = _classifier()
