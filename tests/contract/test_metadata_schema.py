"""`metadata.json` binds two programs that share no Python: what one may write, the other must understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import onnxruntime
import orjson
import pytest

from serving.domain.contract import ModelContract
from serving.domain.geometry import Size
from serving.errors import InvalidRequest, OperatorError

REPOSITORY = Path(__file__).parents[2] / "model_repo"
SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "metadata.schema.json").read_text())
SHAPES = (REPOSITORY / "shapes" / "metadata.json").read_bytes()


def changed(path: str, value: Any) -> bytes:
    """The sample's metadata with one field, named by its dotted path, set to another value."""
    metadata = orjson.loads(SHAPES)
    *parents, last = path.split(".")
    target = metadata
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    target[last] = value
    return orjson.dumps(metadata)


def test_the_sample_is_written_as_the_schema_asks() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(SHAPES), SCHEMA)


def test_the_sample_is_what_its_model_is() -> None:
    contract = ModelContract.parse(SHAPES)
    session = onnxruntime.InferenceSession(REPOSITORY / "shapes" / "1" / "model.onnx")

    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert contract.input_size == Size(320, 320)
    assert contract.class_names == ("circle", "square", "triangle", "star")
    assert (contract.input.name, contract.input.shape[1:]) == (taken.name, tuple(taken.shape[1:]))
    assert (contract.output.name, contract.output.shape[1:]) == (given.name, tuple(given.shape[1:]))
    assert taken.type == "tensor(uint8)"


def test_unknown_fields_are_let_through() -> None:
    assert ModelContract.parse(changed("postprocessing.nms.soft", True)).name == "shapes"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model_info.task_type", "segmentation", "model_info.task_type"),
        ("preprocessing.resize.method", "stretch", "preprocessing.resize.method"),
        ("preprocessing.resize.interpolation", "cubic", "preprocessing.resize.interpolation"),
        ("preprocessing.format.input_layout", "NCHW", "preprocessing.format.input_layout"),
        ("preprocessing.format.color_space", "YUV", "preprocessing.format.color_space"),
        ("preprocessing.format.dtype", "float32", "preprocessing.format.dtype"),
        ("preprocessing.embedded", False, "preprocessing.embedded"),
        ("postprocessing.nms.embedded", True, "postprocessing.nms.embedded"),
        ("postprocessing.nms.iou_threshold", 1.5, "postprocessing.nms.iou_threshold"),
        ("postprocessing.output_format.head", "ssd", "postprocessing.output_format.head"),
        ("postprocessing.output_format.bbox_format", "xyxy", "cxcywh"),
        (
            "postprocessing.output_format.coordinates",
            "normalized",
            "postprocessing.output_format.coordinates",
        ),
        ("classes", [], "classes"),
        ("classes", [{"id": 0, "name": "circle"}], "1 classes do not fit"),
        ("classes.0.id", 7, "numbered"),
        ("output_spec.0.shape", [-1, 2100, 8], "do not fit"),
    ],
)
def test_a_contract_we_do_not_fully_understand_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        ModelContract.parse(changed(path, value))


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
