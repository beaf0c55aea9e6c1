"""The smallest contract that a detector can have, for models that tests make up."""

from __future__ import annotations

from typing import Any

import orjson

from serving.domain.contract import ModelContract


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
