from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from export_pipeline import reference
from export_pipeline.errors import Unsupported
from export_pipeline.facts import Tensor
from export_pipeline.formats import write_model
from export_pipeline.formats.nms_graph import embed_nms
from export_pipeline.frameworks import OpenedModel
from export_pipeline.request import ExportConfig

PICTURES = sorted((Path(__file__).parents[3] / "golden" / "pictures").iterdir())
BATCH_SIZES = (1, 2, 5, 16)
Floats = NDArray[np.float32]


def suppression(classes: int, anchors: int, config: ExportConfig) -> tuple[Any, Tensor]:
    """The suppression alone, behind a graph that does nothing."""
    shape: list[str | int | None] = ["batch", 4 + classes, anchors]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["predictions"])],
        "nothing",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("predictions", onnx.TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", config.opset_version)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    raw = Tensor(
        name="predictions",
        shape=(-1, 4 + classes, anchors),
        dtype="float32",
        layout="NCA",
        description="Raw.",
    )
    output = embed_nms(model, raw, classes, config)
    onnx.checker.check_model(model, full_check=True)
    return session(model.SerializeToString()), output


def session(model: bytes | Path) -> Any:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def run(opened: Any, batch: NDArray[Any]) -> Floats:
    rows: Floats = opened.run(["predictions"], {"images": batch})[0]
    return rows


def draw_raw(kind: str, classes: int, anchors: int, seed: int) -> Floats:
    """(4 + C, A): boxes that overlap a lot, and scores of the kind that is named."""
    rng = np.random.default_rng(seed)
    raw = np.empty((4 + classes, anchors), np.float32)
    raw[:2] = rng.uniform(0, 100, (2, anchors))
    raw[2:4] = rng.uniform(5, 40, (2, anchors))
    raw[4:] = rng.uniform(0, 1, (classes, anchors))
    if kind == "empty":
        raw[4:] *= 0.2
    elif kind == "one class":
        raw[5:] = 0
    elif kind == "ties":
        raw[4:] = np.round(raw[4:] * 4) / 4
    elif kind == "one place":
        raw[:4] = raw[:4, :1]
    elif kind == "no size":
        raw[2:4] = 0
    return raw


KINDS = ("crowd", "empty", "one class", "ties", "one place", "no size")


def wanted(raw: Floats, config: ExportConfig, rows: int) -> list[reference.Detection]:
    candidates = reference.read_yolo_raw(raw, config.confidence_threshold)
    return reference.nms(candidates, config.iou_threshold, min(config.max_detections, rows))


def require_same(found: Floats, expected: list[reference.Detection], box_atol: float) -> None:
    """Row by row, in order; what comes after the last is all 0."""
    count = len(expected)
    assert found[:count, 5].tolist() == [one.class_id for one in expected]
    assert found[:count, 4].tolist() == pytest.approx([one.confidence for one in expected], abs=1e-5)
    boxes = np.array([one.box for one in expected], np.float64).reshape(-1, 4)
    np.testing.assert_allclose(found[:count, :4], boxes, rtol=0, atol=box_atol)
    assert not found[count:].any()


@pytest.mark.parametrize(
    ("classes", "anchors", "options"),
    [
        (4, 150, {}),
        (1, 50, {}),
        (80, 120, {"iou_threshold": 0.7}),
        (3, 60, {"max_detections": 5}),
        (2, 7, {}),  # fewer anchors than detections
        (1, 1, {}),
        (3, 60, {"confidence_threshold": 0.0, "iou_threshold": 0.0}),
        (3, 60, {"confidence_threshold": 0.5, "iou_threshold": 1.0}),
        (3, 60, {"confidence_threshold": 1.0}),
        (4, 60, {"opset_version": 12}),
        (4, 60, {"opset_version": 18}),
        (4, 60, {"opset_version": 20}),
    ],
    ids=str,
)
def test_a_batch_of_different_pictures_is_suppressed_picture_by_picture(
    classes: int, anchors: int, options: dict[str, Any]
) -> None:
    config = ExportConfig(embed_nms=True, **options)
    opened, output = suppression(classes, anchors, config)
    rows = min(config.max_detections, anchors)
    assert output.shape == (-1, rows, 6)
    for size in BATCH_SIZES:
        batch = np.stack(
            [
                draw_raw(KINDS[index % len(KINDS)], classes, anchors, 100 * size + index)
                for index in range(size)
            ]
        )
        found = run(opened, batch)
        assert found.shape == (size, rows, 6)
        for index in range(size):
            require_same(found[index], wanted(batch[index], config, rows), box_atol=1e-4)


def test_a_picture_s_rows_do_not_depend_on_its_neighbours() -> None:
    config = ExportConfig(embed_nms=True)
    opened, _ = suppression(4, 80, config)
    subject = draw_raw("crowd", 4, 80, 0)
    alone = run(opened, subject[None])[0]
    assert alone[:, 4].any()
    for place in range(5):
        batch = np.stack([draw_raw(kind, 4, 80, 1 + place) for kind in KINDS[:5]])
        batch[place] = subject
        np.testing.assert_array_equal(run(opened, batch)[place], alone)
        batch[:, 4:] *= 0
        batch[place] = subject
        np.testing.assert_array_equal(run(opened, batch)[place], alone)


def test_a_score_at_the_threshold_is_left_out_and_the_next_larger_one_is_not() -> None:
    opened, _ = suppression(1, 2, ExportConfig(embed_nms=True, confidence_threshold=0.3))
    at = np.float32(0.3)
    raw = np.array([[10, 90], [10, 90], [5, 5], [5, 5], [at, np.nextafter(at, np.float32(1))]], np.float32)
    assert run(opened, raw[None])[0, :, 4].tolist() == [raw[4, 1], 0]


def test_suppression_needs_an_opset_that_knows_batches() -> None:
    with pytest.raises(Unsupported, match="embed_nms needs opset_version 12 or newer, not 11"):
        suppression(4, 60, ExportConfig(embed_nms=True, opset_version=11))


def read_letterboxed(picture: Path) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(picture.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return reference.letterbox(np.asarray(decoded[..., ::-1], np.uint8), 320, 320, 114)


@pytest.fixture(scope="module")
def golden_batch() -> NDArray[np.uint8]:
    """(16, 320, 320, 3): crowds, overlaps of one class and of two, nothing, tiny and large ones."""
    return np.stack([read_letterboxed(picture) for picture in PICTURES[:16]])


@pytest.fixture(scope="module")
def both_files(sample: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Sessions of the sample model: raw, and with suppression."""
    opened = []
    for embedded in (False, True):
        folder = tmp_path_factory.mktemp("model")
        config = ExportConfig(embed_nms=embedded)
        facts = write_model(sample.graph(config), folder, config, "onnx")
        assert (facts.head, facts.nms_embedded) == (
            ("yolo_end_to_end", True) if embedded else ("yolo_raw", False)
        )
        opened.append(session(folder / facts.file))
    raw, suppressed = opened
    return raw, suppressed


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_golden_pictures_give_the_oracle_s_rows_in_every_batch(
    both_files: tuple[Any, Any], golden_batch: NDArray[np.uint8], size: int
) -> None:
    raw_model, suppressed = both_files
    config = ExportConfig(embed_nms=True)
    counts = []
    for begin in range(0, 16 - size + 1, size):
        batch = golden_batch[begin : begin + size]
        found, raws = run(suppressed, batch), run(raw_model, batch)
        for rows, raw in zip(found, raws, strict=True):
            expected = wanted(raw, config, 300)
            require_same(rows, expected, box_atol=1e-3)
            counts.append(len(expected))
    assert min(counts) == 0
    assert max(counts) >= 50
