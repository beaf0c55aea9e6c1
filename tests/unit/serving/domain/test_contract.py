"""What a contract has to be, and what may then be asked of its model."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest

from serving.domain.contract import ModelContract
from serving.errors import InvalidRequest, OperatorError
from tests.support.contracts import CLASSIFIER, END_TO_END, SHAPES, changed, contract


def test_unknown_fields_are_let_through() -> None:
    assert ModelContract.parse(changed("postprocessing.nms.soft", True)).name == "shapes"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema_version", "2.0", "reads version 1 of metadata.json, not '2.0'"),
        ("schema_version", "10.1", "schema_version"),
        ("schema_version", "1", "schema_version"),
        ("schema_version", 1.1, "schema_version"),
        ("model_info.task_type", "counting", "model_info.task_type"),
        ("model_info.task_type", 7, "model_info.task_type"),
        ("model_info.model_name", "../shapes", "model_info.model_name"),
        ("model_info.version", "../1", "model_info.version"),
        ("model_info.version", "01", "model_info.version"),
        ("model_info.model_file.name", "/etc/passwd", "model_info.model_file.name"),
        ("model_info.model_file.sha256", "abc", "model_info.model_file.sha256"),
        ("model_info.model_file.size_bytes", 0, "model_info.model_file.size_bytes"),
        ("model_info.model_file", None, "model_info.model_file: is missing"),
        ("preprocessing.resize.size", [4096, 4128], "4096 x 4128 are more than the 16777216 pixels"),
        ("preprocessing.resize.interpolation", "cubic", "preprocessing.resize.interpolation"),
        ("preprocessing.resize.antialias", True, "preprocessing.resize.antialias: letterbox is done without"),
        ("preprocessing.resize.stride", 48, "preprocessing.resize.stride: 48 does not divide 320 x 320"),
        ("preprocessing.format.color_space", "YUV", "preprocessing.format.color_space"),
        ("postprocessing.nms.embedded", True, "postprocessing.nms.embedded"),
        ("postprocessing.nms.iou_threshold", 1.5, "postprocessing.nms.iou_threshold"),
        ("postprocessing.nms.iou_threshold", "0.5", "postprocessing.nms.iou_threshold"),
        ("postprocessing.nms.confidence_threshold", True, "postprocessing.nms.confidence_threshold"),
        ("postprocessing.nms.max_detections", "300", "postprocessing.nms.max_detections"),
        ("postprocessing.nms.max_detections", True, "postprocessing.nms.max_detections"),
        ("preprocessing.resize.size", ["320", 320], "preprocessing.resize.size"),
        ("postprocessing.nms", None, "postprocessing.nms: is missing"),
        ("postprocessing.classification", {"top_k": 5, "confidence_threshold": 0}, "has no meaning"),
        ("postprocessing.output_format.head", "ssd", "postprocessing.output_format.head"),
        ("postprocessing.output_format.head", "classification", "is not for detection"),
        ("postprocessing.output_format.bbox_format", "xyxy", "cxcywh"),
        ("postprocessing.output_format.bbox_format", None, "bbox_format: is missing"),
        ("postprocessing.output_format.coordinates", None, "coordinates: is missing"),
        ("input_spec.0.shape", [-1, 320, 321, 3], "input_spec"),
        ("input_spec.0.shape", [8, 320, 320, 3], "any size"),
        ("input_spec.0.layout", "NWHC", "input_spec.0.layout"),
        ("input_spec", [], "input_spec"),
        ("output_spec.0.shape", [-1, 2100, 8], "do not fit"),
        ("output_spec.0.shape", [8, 8, 2100], "any size"),
        ("output_spec.0.shape", [1, 8, 2100], "its batch is not the input's"),
        ("input_spec.0.shape", [True, 320, 320, 3], "input_spec.0.shape"),
        ("output_spec.0.shape", [], "any size"),
        ("output_spec.0.layout", "NAC", "output_spec.0.layout"),
        ("classes", [], "classes"),
        ("classes", [{"id": 0, "name": "circle"}], "1 classes do not fit"),
        ("classes.0.id", 7, "numbered"),
    ],
)
def test_a_contract_we_do_not_fully_understand_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        ModelContract.parse(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("preprocessing.resize.antialias", False, "center_crop is done with it"),
        ("preprocessing.resize.stride", 3, "does not divide"),
        ("postprocessing.classification", None, "postprocessing.classification: is missing"),
        ("postprocessing.classification.top_k", 0, "postprocessing.classification.top_k"),
        ("postprocessing.nms", orjson.loads(SHAPES)["postprocessing"]["nms"], "postprocessing.nms: has no"),
        ("postprocessing.output_format.bbox_format", "xyxy", "bbox_format: has no meaning"),
        ("postprocessing.output_format.head", "yolo_raw", "is not for classification"),
        ("output_spec.0.shape", [-1, 5], "4 classes do not fit"),
        ("output_spec.0.shape", [-1, 4, 1], "do not fit"),
    ],
)
def test_neither_is_a_classifier_that_contradicts_itself(path: str, value: Any, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        ModelContract.parse(changed(path, value, CLASSIFIER))


@pytest.mark.parametrize(
    "path",
    [
        "schema_version",
        "model_info.task_type",
        "model_info.model_name",
        "input_spec.0.layout",
        "input_spec.0.dtype",
        "output_spec.0.layout",
        "output_spec.0.dtype",
    ],
)
@pytest.mark.parametrize("value", ["x" * 1_000_000, "\x1b[2J\x00\n\u202e"], ids=["long", "unprintable"])
def test_what_is_said_of_a_contract_is_short_and_printable(path: str, value: str) -> None:
    with pytest.raises(OperatorError) as caught:
        ModelContract.parse(changed(path, value))

    assert caught.value.detail.startswith(f"metadata.json, {path.partition('.')[0]}")
    assert len(caught.value.detail) <= 300
    assert caught.value.detail.isprintable()


def test_neither_do_a_million_dimensions_make_it_long() -> None:
    with pytest.raises(OperatorError) as caught:
        ModelContract.parse(changed("output_spec.0.shape", [-1] * 1_000_000))

    assert len(caught.value.detail) <= 300


def test_a_model_file_may_be_missing_from_what_was_written_before_it_was_named() -> None:
    old = changed("schema_version", "1.0", changed("model_info.model_file", None))

    assert ModelContract.parse(old).model_info.model_file is None


def test_suppression_in_the_model_file_cannot_be_off() -> None:
    with pytest.raises(OperatorError, match="what is embedded in the model file is not off"):
        ModelContract.parse(changed("postprocessing.nms.enabled", False, END_TO_END))


def test_a_crop_is_a_square() -> None:
    oblong = changed("preprocessing.resize.size", [320, 160], CLASSIFIER)
    oblong = changed("input_spec.0.shape", [-1, 160, 320, 3], oblong)

    with pytest.raises(OperatorError, match="cuts squares, not 320 x 160"):
        ModelContract.parse(oblong)


def test_boxes_need_a_letterbox_to_find_their_way_back() -> None:
    cropped = orjson.loads(CLASSIFIER)["preprocessing"]

    with pytest.raises(OperatorError, match="traced back through a letterbox only"):
        ModelContract.parse(changed("preprocessing", cropped))


def test_a_classifier_may_see_letterboxed_pictures() -> None:
    letterboxed = orjson.loads(SHAPES)["preprocessing"]

    assert ModelContract.parse(changed("preprocessing", letterboxed, CLASSIFIER)).task == "classification"


@pytest.mark.parametrize(
    ("field", "says"), [("schema_version", "schema_version"), ("model_info", "model_info")]
)
def test_what_every_contract_has_may_not_be_left_out(field: str, says: str) -> None:
    metadata = orjson.loads(SHAPES)
    del metadata[field]

    with pytest.raises(OperatorError, match=says):
        ModelContract.parse(orjson.dumps(metadata))


def test_the_task_is_what_is_said_of_a_model_that_is_strange_in_every_way() -> None:
    strange = changed("model_info.task_type", "segmentation")
    for path, value in (("framework", 7), ("version", None), ("model_file", [])):
        strange = changed(f"model_info.{path}", value, strange)
    for path in ("preprocessing", "postprocessing", "output_spec"):
        strange = changed(path, "?", strange)

    with pytest.raises(OperatorError, match="the model is for 'segmentation'"):
        ModelContract.parse(strange)


def test_a_later_minor_version_is_read() -> None:
    assert ModelContract.parse(changed("schema_version", "1.12")).name == "shapes"


def test_what_the_export_measured_is_passed_on_as_it_is() -> None:
    measured = {"latency_ms": {"p50": 1.0, "p90": 2.0}, "of a later version": [1]}

    contract = ModelContract.parse(changed("performance", measured))

    assert contract.performance == measured
    assert contract.validation == orjson.loads(SHAPES)["validation"]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400, float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["performance", "validation"])
def test_a_number_that_cannot_be_passed_on_is_refused(part: str, number: float) -> None:
    measured = json.dumps({"runs": [{"pictures": [number]}]}).encode()
    document = changed(part, "measured").replace(b'"measured"', measured)

    with pytest.raises(OperatorError, match=f"{part}: holds a number that cannot be passed on"):
        ModelContract.parse(document)


def test_the_largest_that_can_is_not() -> None:
    assert ModelContract.parse(changed("performance", {"bytes": 2**64 - 1})).performance == {
        "bytes": 2**64 - 1
    }


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"{}"])
def test_what_is_no_contract_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(OperatorError):
        ModelContract.parse(text)


def test_the_hash_is_of_the_file_as_it_lies_there() -> None:
    assert ModelContract.parse(SHAPES).sha256 != ModelContract.parse(SHAPES + b"\n").sha256


def test_defaults_come_from_the_contract_and_requests_override_them() -> None:
    contract = ModelContract.parse(SHAPES)

    defaults = contract.options()
    assert (defaults.confidence_threshold, defaults.iou_threshold, defaults.max_detections) == (
        0.25,
        0.45,
        300,
    )
    assert contract.options(confidence_threshold=0.0).confidence_threshold == 0.0
    assert contract.options(classes=("star", 0, "1")).class_ids == frozenset({3, 0, 1})


@pytest.mark.parametrize("selector", ["cross", "", "4", 4, "-1", "²"])
def test_a_class_the_model_does_not_have(selector: str | int) -> None:
    with pytest.raises(InvalidRequest, match="has no class"):
        ModelContract.parse(SHAPES).options(classes=(selector,))


def test_of_classes_that_share_a_name_the_first_is_meant() -> None:
    twins = contract("twins", side=32, anchors=1, classes=["a", "b", "a", "b"])

    assert twins.options(classes=("b", "a")).class_ids == frozenset({0, 1})


def test_many_names_of_many_classes_are_found_at_once() -> None:
    names = [f"class {number}" for number in range(100_000)]
    many = contract("many", side=32, anchors=1, classes=names)

    began = time.perf_counter()
    found = many.options(classes=tuple(names[-1000:]))

    assert time.perf_counter() - began < 1.0  # one look at each for every name takes ten times as long
    assert found.class_ids == frozenset(range(99_000, 100_000))
    assert many.class_names is many.class_names


def test_a_classifier_has_defaults_of_its_own() -> None:
    defaults = ModelContract.parse(CLASSIFIER).options()

    assert (defaults.confidence_threshold, defaults.max_detections) == (0.0, 3)
    assert ModelContract.parse(CLASSIFIER).options(max_detections=1, classes=(3,)).class_ids == frozenset({3})


@pytest.mark.parametrize("iou_threshold", [0.0, 0.45, 1.0])
def test_classes_do_not_overlap(iou_threshold: float) -> None:
    with pytest.raises(InvalidRequest, match="iou_threshold: the model 'shapes' answers classes"):
        ModelContract.parse(CLASSIFIER).options(iou_threshold=iou_threshold)


def test_neither_do_boxes_that_nobody_lets_compete() -> None:
    document = changed("postprocessing.nms.enabled", False, END_TO_END)
    final = ModelContract.parse(changed("postprocessing.nms.embedded", False, document))

    with pytest.raises(
        InvalidRequest, match="iou_threshold: the model 'shapes' answers boxes, and drops none"
    ):
        final.options(iou_threshold=0.45)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"confidence_threshold": 0.24}, "confidence_threshold is fixed inside the model 'shapes': 0.25"),
        ({"iou_threshold": 0.44}, "iou_threshold is fixed inside the model 'shapes': 0.45"),
        ({"iou_threshold": 0.46}, "iou_threshold is fixed"),
        ({"max_detections": 301}, "max_detections is fixed inside the model 'shapes': 300"),
    ],
)
def test_what_the_graph_has_dropped_cannot_be_asked_for(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ModelContract.parse(END_TO_END).options(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"confidence_threshold": 0.25, "iou_threshold": 0.45, "max_detections": 300},
        {"confidence_threshold": 1.0, "max_detections": 1, "classes": ("star",)},
    ],
)
def test_what_it_has_kept_can(asked: dict[str, Any]) -> None:
    options = ModelContract.parse(END_TO_END).options(**asked)

    assert options.confidence_threshold == asked.get("confidence_threshold", 0.25)
    assert options.max_detections == asked.get("max_detections", 300)


@pytest.mark.parametrize(("enabled", "embedded"), [(False, False), (True, False), (True, True)])
def test_boxes_compete_here_where_they_have_not_in_the_model(enabled: bool, embedded: bool) -> None:
    document = changed("postprocessing.nms.enabled", enabled, END_TO_END)
    document = changed("postprocessing.nms.embedded", embedded, document)

    assert ModelContract.parse(document).suppresses_duplicates == (enabled and not embedded)


def test_classes_never_do() -> None:
    assert not ModelContract.parse(CLASSIFIER).suppresses_duplicates
