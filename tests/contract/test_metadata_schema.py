"""`metadata.json` binds two programs that share no Python: what one may write, the other must understand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import onnxruntime
import pytest
from pydantic import BaseModel

from serving.domain.contract import ModelContract
from serving.domain.geometry import Size
from serving.errors import OperatorError
from tests.support.contracts import CLASSIFIER, END_TO_END, SHAPES, changed

REPOSITORY = Path(__file__).parents[2] / "model_repo"
SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "metadata.schema.json").read_text())


Verdict = bytes | str
"""The document that the value is understood in, or why no document with it is."""


def test_the_sample_and_its_variants_are_written_as_the_schema_asks() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for document in (SHAPES, END_TO_END, CLASSIFIER):
        jsonschema.validate(json.loads(document), SCHEMA)


def test_the_sample_is_what_its_model_is() -> None:
    contract = ModelContract.parse(SHAPES)
    session = onnxruntime.InferenceSession(REPOSITORY / "shapes" / "1" / "model.onnx")

    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert contract.input_size == Size(320, 320)
    assert contract.class_names == ("circle", "square", "triangle", "star")
    assert (contract.input.name, contract.input.shape[1:]) == (taken.name, tuple(taken.shape[1:]))
    assert (contract.output.name, contract.output.shape[1:]) == (given.name, tuple(given.shape[1:]))
    assert taken.type == "tensor(uint8)"


NOT_SERVED = "this gateway serves detection and classification; the model is for '{}'"
BOX_HEADS = ("yolo_raw", "yolo_end_to_end")
VERDICTS: dict[str, dict[Any, Verdict]] = {
    "schema_version": {"1.1": SHAPES},
    "model_info.framework": {"ultralytics": SHAPES, "timm": SHAPES, "huggingface": SHAPES},
    "model_info.task_type": {
        "detection": SHAPES,
        "classification": CLASSIFIER,
        **{task: NOT_SERVED.format(task) for task in ("segmentation", "pose", "obb", "embedding")},
    },
    "model_info.export_format": {
        **dict.fromkeys(("onnx", "tensorrt", "openvino", "torchscript"), SHAPES),
        **dict.fromkeys(("coreml", "tflite"), "Input should be 'onnx'"),
    },
    "preprocessing.resize.method": {
        "letterbox": SHAPES,
        "center_crop": CLASSIFIER,
        "stretch": "Input should be 'letterbox' or 'center_crop'",
    },
    "preprocessing.resize.interpolation": {"bilinear": SHAPES, "bicubic": "Input should be 'bilinear'"},
    "preprocessing.resize.antialias": {False: SHAPES, True: CLASSIFIER},
    "preprocessing.format.input_layout": {"NHWC": SHAPES, "NCHW": "Input should be 'NHWC'"},
    "preprocessing.format.output_layout": {"NHWC": SHAPES, "NCHW": SHAPES},  # inside the model file
    "preprocessing.format.color_space": {"RGB": SHAPES, "BGR": SHAPES, "GRAY": "Input should be 'RGB'"},
    "preprocessing.format.dtype": {
        "uint8": SHAPES,
        "float16": "Input should be 'uint8'",
        "float32": "Input should be 'uint8'",
    },
    "preprocessing.embedded": {True: SHAPES, False: "Input should be True"},
    "postprocessing.nms.enabled": {True: SHAPES, False: SHAPES},
    "postprocessing.nms.embedded": {True: END_TO_END, False: SHAPES},
    "postprocessing.nms.class_agnostic": {True: SHAPES, False: SHAPES},
    "postprocessing.output_format.head": {
        "yolo_raw": SHAPES,
        "yolo_end_to_end": END_TO_END,
        "classification": CLASSIFIER,
        "embedding": "Input should be 'yolo_raw'",
        **{
            f"{head}_{task}": "Input should be 'yolo_raw'"
            for head in BOX_HEADS
            for task in ("segmentation", "pose", "obb")
        },
    },
    "postprocessing.output_format.bbox_format": {"cxcywh": SHAPES, "xyxy": END_TO_END},
    "postprocessing.output_format.coordinates": {"pixels": SHAPES, "normalized": "Input should be 'pixels'"},
    "input_spec.0.dtype": {
        "uint8": SHAPES,
        **dict.fromkeys(("int8", "int32", "int64", "float16", "float32"), "does not fit"),
    },
    "output_spec.0.dtype": {
        "float32": SHAPES,
        **dict.fromkeys(("uint8", "int8", "int32", "int64", "float16"), "must be float32"),
    },
}
"""Every value that a writer may choose, and what the gateway makes of it."""

NOT_FOR_THE_GATEWAY = {
    "model_info.source_checkpoint_sha256",  # where the model came from
    "preprocessing.normalize",  # happens inside the model file, as does
    "preprocessing.format.output_layout",
    "input_spec.description",  # for people
    "output_spec.description",
    "runtime_wrappers",  # what else is in the package
}
PASSED_ON = {"performance", "validation"}
"""Answered by `GET /v1/models/{name}` as it is written."""


def properties(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema by its dotted path, lists and references followed."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "items" in schema:
        yield from properties(schema["items"], path)
    for name, entry in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, entry
        if here not in PASSED_ON:
            yield from properties(entry, here)


def choices() -> Iterator[tuple[str, Any]]:
    for path, entry in properties(SCHEMA):
        values = entry.get("enum", [entry["const"]] if "const" in entry else [])
        if entry.get("type") == "boolean":
            values = [True, False]
        for value in values:
            # Of a list, its first entry stands for them all.
            yield (
                path.replace("input_spec.", "input_spec.0.").replace("output_spec.", "output_spec.0."),
                value,
            )


def test_the_table_names_every_value_that_a_writer_may_choose() -> None:
    assert sorted(map(str, choices())) == sorted(
        str((path, value)) for path, verdicts in VERDICTS.items() for value in verdicts
    )


@pytest.mark.parametrize(("path", "value"), list(choices()))
def test_each_value_is_understood_or_refused_by_the_name_of_its_field(path: str, value: Any) -> None:
    verdict = VERDICTS[path][value]
    document = changed(path, value, SHAPES if isinstance(verdict, str) else verdict)
    jsonschema.validate(json.loads(document), SCHEMA)

    if isinstance(verdict, bytes):
        assert ModelContract.parse(document).name == "shapes"
    else:
        with pytest.raises(OperatorError) as refused:
            ModelContract.parse(document)
        assert path.partition(".0.")[0] in str(refused.value)
        assert verdict in str(refused.value)


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        here = f"{path}.{name}".lstrip(".")
        yield here
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields(part, here)


def test_every_field_is_read_or_known_not_to_matter() -> None:
    """So a field that is added to the schema cannot be forgotten here."""
    read = set(fields(ModelContract)) - {"sha256"}
    written = {
        path
        for path, _ in properties(SCHEMA)
        if not any(path == one or path.startswith(f"{one}.") for one in NOT_FOR_THE_GATEWAY - {path})
    }

    assert written - read == NOT_FOR_THE_GATEWAY
    assert read - written == set()
