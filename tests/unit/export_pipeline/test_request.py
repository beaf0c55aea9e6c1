from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export_pipeline.errors import BadInput, Unsupported
from export_pipeline.request import ExportRequest, read_request


def read(**changed: Any) -> ExportRequest:
    return read_request({"checkpoint": "best.pt", "name": "cats", **changed})


def test_what_is_not_said_has_the_documented_default() -> None:
    request = read()

    assert (request.export_format, request.framework, request.publish, request.new_version) == (
        "onnx",
        "ultralytics",
        None,
        False,
    )
    graph = request.export_config
    assert (graph.imgsz, graph.opset_version, graph.precision, graph.head) == (None, 17, "fp32", "native")
    assert (graph.embed_preprocessing, graph.embed_nms, graph.dynamic_axes) == (True, False, True)
    assert (graph.confidence_threshold, graph.iou_threshold, graph.max_detections) == (0.25, 0.45, 300)
    assert request.validation_config.enabled
    assert request.validation_config.fail_threshold.accuracy_drop_max == 0.01


@pytest.mark.parametrize(
    ("imgsz", "expected"),
    [(320, (320, 320)), ((640, 384), (640, 384)), ([640, 384], (640, 384)), (None, None)],
)
def test_a_size_is_one_number_or_width_and_height(imgsz: object, expected: tuple[int, int] | None) -> None:
    assert read(export_config={"imgsz": imgsz}).export_config.imgsz == expected


@pytest.mark.parametrize("name", ["a", "shapes", "YOLO26n-seg_v1.2", "7", "x" * 128])
def test_names_that_are_a_folder_of_their_own(name: str) -> None:
    assert read(name=name).name == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "../x", "/x", "a/b", "a\\b", "a b", "-x", "_x", "é", "a\n", "a\0", "x" * 129],
)
def test_names_that_would_leave_the_repository_or_hide_in_it(name: str) -> None:
    with pytest.raises(BadInput, match=r"^name: a model is named with 1 to 128 letters"):
        read(name=name)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"checkpoint": ""}, "checkpoint: String should have at least 1 character"),
        ({"checkpoint": None}, "checkpoint: Input should be a valid string"),
        ({"export_format": "pdf"}, "export_format: Input should be 'onnx', 'tensorrt'"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"export_config": {"colour": "red"}}, "export_config.colour: Extra inputs are not permitted"),
        (
            {"export_config": {"imgsz": 31}},
            "export_config.imgsz.0: Input should be greater than or equal to 32",
        ),
        ({"export_config": {"imgsz": [1, 2, 3]}}, "export_config.imgsz"),
        ({"export_config": {"opset_version": "new"}}, "export_config.opset_version: Input should be a valid"),
        ({"export_config": {"opset_version": 22}}, "export_config.opset_version: Input should be less than"),
        ({"export_config": {"confidence_threshold": float("nan")}}, "export_config.confidence_threshold"),
        ({"export_config": {"iou_threshold": 1.5}}, "export_config.iou_threshold: Input should be less than"),
        ({"export_config": {"max_detections": 0}}, "export_config.max_detections"),
        ({"export_config": {"embed_nms": True, "head": "end_to_end"}}, "needs no suppression"),
        ({"export_config": {"dynamic_axes": False}}, "takes one picture: set max_batch_size to 1"),
        ({"validation_config": {"max_pictures": 0}}, "validation_config.max_pictures"),
        (
            {"validation_config": {"fail_threshold": {"accuracy_drop_max": -0.1}}},
            "validation_config.fail_threshold.accuracy_drop_max",
        ),
        ({"limits": {"memory_bytes": 1}}, "limits.memory_bytes"),
        ({"limits": {"time_seconds": float("inf")}}, "limits.time_seconds"),
        (
            {"publish": "model_repo", "validation_config": {"enabled": False}},
            "options: nothing is published without a certificate",
        ),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(**changed)

    assert sentence in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_everything_that_does_not_fit_is_named_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        read(name="../x", export_format="pdf", export_config={"max_batch_size": 0})

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "name",
        "export_format",
        "export_config.max_batch_size",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"export_format": "tensorrt"},
        {"framework": "timm"},
        {"export_config": {"precision": "int8"}},
        {"optimization_config": {"pruning": {}}},
    ],
)
def test_what_no_exporter_here_does_is_unsupported(changed: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read(**changed)


def test_a_request_survives_its_own_json() -> None:
    request = read(
        publish=Path("/models"),
        export_config={"imgsz": (640, 384), "precision": "fp16"},
        validation_config={"pictures": "/golden", "dataset": "/data.yaml", "max_pictures": 3},
        limits={"memory_bytes": 2**30, "time_seconds": 60},
    )

    assert ExportRequest.model_validate_json(request.model_dump_json()) == request
