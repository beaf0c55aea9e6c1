"""Every golden picture, from its bytes to its boxes, against Ultralytics' own answers and the oracle's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from export_pipeline import reference
from export_pipeline.reference import Box, Detection
from serving.domain.contract import ModelContract
from serving.vision.decode import decode_rgb
from serving.vision.letterbox import letterbox_batch
from serving.vision.postprocess import detect
from tests.support.same_detections import assert_same_detections, from_json

REPOSITORY = Path(__file__).parents[2]
PICTURES = REPOSITORY / "tests/golden/pictures"
GOLDEN: dict[str, Any] = json.loads((REPOSITORY / "tests/golden/predictions.json").read_bytes())
CONTRACT = ModelContract.parse((REPOSITORY / "model_repo/shapes/metadata.json").read_bytes())
OPTIONS = CONTRACT.options()
MAX_PIXELS = 50_000_000


@pytest.fixture(scope="session")
def model() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        REPOSITORY / "model_repo/shapes/1/model.onnx", options, providers=["CPUExecutionProvider"]
    )


def run(model: onnxruntime.InferenceSession, batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    (output,) = model.run([CONTRACT.output.name], {CONTRACT.input.name: batch_nhwc})
    return np.asarray(output, np.float32)


def detected(model: onnxruntime.InferenceSession, names: list[str]) -> list[list[Detection]]:
    """What the gateway's own code finds in these pictures, as one batch."""
    preprocessing = CONTRACT.preprocessing
    batch_nhwc = np.empty((len(names), CONTRACT.input_size.height, CONTRACT.input_size.width, 3), np.uint8)
    geometries = letterbox_batch(
        [decode_rgb((PICTURES / name).read_bytes(), max_pixels=MAX_PIXELS) for name in names],
        out=batch_nhwc,
        fill_value=preprocessing.resize.fill_value,
        color_space=preprocessing.format.color_space,
    )
    found = detect(CONTRACT, run(model, batch_nhwc), [OPTIONS] * len(names), geometries)
    return [
        [
            Detection(_box(box.tolist()), float(confidence), int(class_id))
            for box, confidence, class_id in zip(each.xyxy, each.confidence, each.class_id, strict=True)
        ]
        for each in found
    ]


def expected_by_ultralytics(name: str) -> list[Detection]:
    return [from_json(entry) for entry in GOLDEN["pictures"][name]["predictions"]]


def expected_by_oracle(model: onnxruntime.InferenceSession, name: str) -> list[Detection]:
    data = np.fromfile(PICTURES / name, np.uint8)
    flags = cv2.IMREAD_COLOR  # as Ultralytics reads
    picture_rgb = np.ascontiguousarray(cv2.imdecode(data, flags)[..., ::-1], dtype=np.uint8)
    height, width, _ = picture_rgb.shape
    boxed = reference.letterbox(picture_rgb, 320, 320, 114)
    candidates = reference.read_yolo_raw(run(model, boxed[None])[0], OPTIONS.confidence_threshold)
    kept = reference.nms(candidates, OPTIONS.iou_threshold, OPTIONS.max_detections)
    return [
        Detection(reference.unletterbox_box(one.box, width, height, 320, 320), one.confidence, one.class_id)
        for one in kept
    ]


def _box(numbers: list[float]) -> Box:
    x_min, y_min, x_max, y_max = numbers
    return x_min, y_min, x_max, y_max


def test_every_golden_picture_has_its_golden_predictions_and_the_other_way_round() -> None:
    assert sorted(path.name for path in PICTURES.iterdir()) == sorted(GOLDEN["pictures"])


@pytest.mark.parametrize("name", GOLDEN["pictures"])
def test_the_picture_is_seen_at_its_upright_size(name: str) -> None:
    entry = GOLDEN["pictures"][name]

    rgb = decode_rgb((PICTURES / name).read_bytes(), max_pixels=MAX_PIXELS)

    assert rgb.shape == (entry["height"], entry["width"], 3)


@pytest.mark.parametrize("name", GOLDEN["pictures"])
def test_the_boxes_are_those_of_ultralytics_own_predict(
    name: str, model: onnxruntime.InferenceSession
) -> None:
    (found,) = detected(model, [name])

    assert_same_detections(found, expected_by_ultralytics(name))


@pytest.mark.parametrize("name", GOLDEN["pictures"])
def test_the_boxes_are_those_of_the_oracle(name: str, model: onnxruntime.InferenceSession) -> None:
    (found,) = detected(model, [name])

    assert_same_detections(found, expected_by_oracle(model, name))


def test_a_batch_of_all_gives_each_picture_what_it_gets_alone(model: onnxruntime.InferenceSession) -> None:
    names = list(GOLDEN["pictures"])

    for name, found in zip(names, detected(model, names), strict=True):
        assert_same_detections(found, expected_by_ultralytics(name))
