"""metadata.json from a job's facts: what the schema asks for, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.metadata import (
    SCHEMA_FILE,
    build_metadata,
    parse_metadata,
    read_metadata,
    write_metadata,
)
from tests.support.export_jobs import CLASS_NAMES, KINDS, PERFORMANCE, certify, make_job

REPOSITORY = Path(__file__).parents[3]
SHAPES = REPOSITORY / "model_repo/shapes/metadata.json"


def changed(metadata: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(metadata))
    *parents, last = path.split(".")
    target = copy
    for part in parents:
        target = target[part]
    target[last] = value
    return copy


def test_the_schema_is_the_one_beside_the_models() -> None:
    assert SCHEMA_FILE.read_bytes() == (REPOSITORY / "model_repo/metadata.schema.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measured", [False, True])
def test_every_kind_of_model_is_written_as_the_schema_asks(tmp_path: Path, kind: str, measured: bool) -> None:
    folder, record = make_job(tmp_path / "job", kind, version=3)
    parts = {"performance": PERFORMANCE, "validation": certify(folder)} if measured else {}

    write_metadata(tmp_path / "metadata.json", build_metadata(folder, record, **parts))

    metadata = json.loads((tmp_path / "metadata.json").read_bytes())
    jsonschema.validate(metadata, json.loads(SCHEMA_FILE.read_bytes()))
    info = metadata["model_info"]
    assert (info["version"], info["task_type"]) == ("3", KINDS[kind].task_type)
    assert info["model_file"]["sha256"] == folder.model().sha256
    assert info["source_checkpoint_sha256"] == folder.checkpoint().sha256
    assert [entry["name"] for entry in metadata["classes"]] == list(CLASS_NAMES)
    assert ("performance" in metadata, "validation" in metadata) == (measured, measured)
    assert read_metadata(tmp_path / "metadata.json") == metadata


@pytest.mark.parametrize(
    ("kind", "enabled", "embedded", "bbox_format"),
    [
        ("raw", True, False, "cxcywh"),
        ("end_to_end", False, False, "xyxy"),
        ("embedded_nms", True, True, "xyxy"),
        ("segmentation", True, False, "cxcywh"),
    ],
)
def test_who_suppresses_and_how_boxes_are_spelt(
    tmp_path: Path, kind: str, enabled: bool, embedded: bool, bbox_format: str
) -> None:
    postprocessing = build_metadata(*make_job(tmp_path, kind))["postprocessing"]

    assert (postprocessing["nms"]["enabled"], postprocessing["nms"]["embedded"]) == (enabled, embedded)
    assert postprocessing["output_format"]["bbox_format"] == bbox_format


def test_the_thresholds_are_those_that_were_asked_for(tmp_path: Path) -> None:
    asked = {"confidence_threshold": 0.4, "iou_threshold": 0.6, "max_detections": 7}

    nms = build_metadata(*make_job(tmp_path, export_config=asked))["postprocessing"]["nms"]

    assert {name: nms[name] for name in asked} == asked


def test_a_classifier_answers_five_classes_or_as_many_as_it_has(tmp_path: Path) -> None:
    postprocessing = build_metadata(*make_job(tmp_path, "classification"))["postprocessing"]

    assert postprocessing == {
        "classification": {"top_k": 4, "confidence_threshold": 0.0},
        "output_format": {"head": "classification"},
    }


@pytest.mark.parametrize(
    ("kind", "parts", "scored"),
    [
        ("raw", {}, 4),
        ("raw", {"boxes": (0, 4), "scores": (4, 7)}, 4),
        ("classification", {}, 4),
        ("segmentation", {"boxes": (0, 4), "scores": (4, 8), "masks": (8, 40)}, 4),
    ],
)
@pytest.mark.parametrize("named", [3, 5])
def test_other_classes_than_the_output_has_scores_for(
    tmp_path: Path, kind: str, parts: dict[str, tuple[int, int]], scored: int, named: int
) -> None:
    folder, record = make_job(tmp_path, kind)
    model = folder.model()
    outputs = (model.outputs[0].model_copy(update={"parts": parts}), *model.outputs[1:])
    folder.write("model/model.json", model.model_copy(update={"outputs": outputs}).to_json())
    build_metadata(folder, record)
    names = tuple(f"class {index}" for index in range(named))
    folder.write("checkpoint.json", folder.checkpoint().model_copy(update={"class_names": names}).to_json())

    with pytest.raises(BadInput, match=f"names {named} classes, and the model's output has {scored} scores"):
        build_metadata(folder, record)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("surprise", 1, "top level: .*'surprise' was unexpected"),
        ("model_info.version", "0", "model_info.version"),
        ("model_info.model_name", "../elsewhere", "model_info.model_name"),
        ("preprocessing.resize.method", "tile", "preprocessing.resize.method"),
        ("postprocessing.nms", None, "postprocessing.nms"),
        ("classes", [], "classes"),
        ("classes", [{"id": 0, "name": "two\nlines"}], "classes.0.name"),
        ("classes", [{"id": 0, "name": "line\n"}], "classes.0.name"),
        ("classes", [{"id": 0, "name": "\x1b[2J"}], "classes.0.name"),
        ("classes", [{"id": 0, "name": " "}], "classes.0.name"),
        ("classes", [{"id": 0, "name": "x" * 201}], "classes.0.name"),
        ("performance", {"latency_ms": {"p50": 0, "p90": 1}}, "performance"),
        ("validation", {"passed": False}, "validation"),
    ],
)
def test_what_the_schema_does_not_allow_is_not_written(
    tmp_path: Path, path: str, value: object, says: str
) -> None:
    metadata = build_metadata(*make_job(tmp_path / "job"))

    with pytest.raises(ExportError, match=f"metadata.json, {says}"):
        write_metadata(tmp_path / "metadata.json", changed(metadata, path, value))
    assert not (tmp_path / "metadata.json").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_not_written(tmp_path: Path, number: float) -> None:
    metadata = build_metadata(*make_job(tmp_path / "job"), performance=PERFORMANCE)

    with pytest.raises(ExportError, match=r"metadata\.json cannot be written: Out of range"):
        write_metadata(tmp_path / "metadata.json", changed(metadata, "performance.throughput_ips", number))
    assert not (tmp_path / "metadata.json").exists()


def test_names_of_any_script_are_kept(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job")
    names = ("Kreis", "四角", "شكل", "étoile")
    folder.write("checkpoint.json", folder.checkpoint().model_copy(update={"class_names": names}).to_json())

    write_metadata(tmp_path / "metadata.json", build_metadata(folder, record))

    assert "四角" in (tmp_path / "metadata.json").read_text(encoding="utf-8")
    assert [entry["name"] for entry in read_metadata(tmp_path / "metadata.json")["classes"]] == list(names)


def test_what_a_later_minor_version_adds_is_read_and_kept() -> None:
    later = changed(json.loads(SHAPES.read_bytes()), "model_info.author", "me") | {"schema_version": "1.7"}

    assert parse_metadata(json.dumps(later).encode(), "it") == later


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "schema_version", "2.0")).encode(),
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "model_info.version", "latest")).encode(),
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "model_info.version", "0")).encode(),
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "model_info.model_name", 1)).encode(),
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "model_info.model_file", None)).encode(),
        json.dumps(changed(json.loads(SHAPES.read_bytes()), "model_info.model_file.name", "../x")).encode(),
    ],
)
def test_what_is_no_contract_is_refused(content: bytes) -> None:
    with pytest.raises(BadInput, match="it is not a"):
        parse_metadata(content, "it")


def test_a_contract_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        read_metadata(tmp_path / "metadata.json")
