"""One classifier, three programs that share no Python: the gateway, the package's wrapper and the oracle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import pytest
from numpy.typing import NDArray

from export_pipeline import reference
from export_pipeline.runtimes.python.model_wrapper import ModelWrapper
from serving.domain.contract import ModelContract
from serving.domain.geometry import Size
from serving.domain.inference import Predictions
from serving.vision.decode import decode_rgb
from serving.vision.postprocess import postprocess
from serving.vision.preprocess import preprocess
from tests.support.contracts import CLASSIFIER
from tests.support.onnx_models import write_model

PICTURES = sorted((Path(__file__).parents[1] / "golden/pictures").iterdir())
SIDE = 64
CORNERS = """
    <ir_version: 8, opset_import: ["" : 17]>
    corners (uint8[N, 64, 64, 3] images) => (float[N, 12] scores)
    <float tenth = {0.1}, int64[2] flat = {-1, 12}> {
        pixels = Cast <to = 1> (images)
        columns_first = Transpose <perm = [0, 3, 1, 2]> (pixels)
        quarters = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (columns_first)
        row = Reshape(quarters, flat)
        logits = Mul(row, tenth)
        scores = Softmax <axis = 1> (logits)
    }
"""  # twelve classes: how red, green and blue each quarter of the picture is


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corners")
    write_model(folder / "model.onnx", CORNERS)
    content = (folder / "model.onnx").read_bytes()
    metadata: dict[str, Any] = orjson.loads(CLASSIFIER)
    metadata["model_info"]["model_file"] |= {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    metadata["preprocessing"]["resize"]["size"] = [SIDE, SIDE]
    metadata["input_spec"][0] |= {"name": "images", "shape": [-1, SIDE, SIDE, 3]}
    metadata["output_spec"][0] |= {"name": "scores", "shape": [-1, 12]}
    metadata["classes"] = [{"id": number, "name": f"class {number}"} for number in range(12)]
    (folder / "metadata.json").write_bytes(orjson.dumps(metadata))
    return folder


@pytest.fixture(scope="module")
def wrapper(package: Path) -> ModelWrapper:
    return ModelWrapper(package, threads=1)


@pytest.fixture(scope="module")
def contract(package: Path) -> ModelContract:
    return ModelContract.parse((package / "metadata.json").read_bytes())


def run(package: Path, batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["scores"], {"images": batch_nhwc})[0], np.float32)


def by_gateway(package: Path, contract: ModelContract, **asked: Any) -> list[Predictions]:
    """All pictures as one batch."""
    pixels = [decode_rgb(path.read_bytes(), max_pixels=50_000_000) for path in PICTURES]
    batch_nhwc = np.empty((len(pixels), SIDE, SIDE, 3), np.uint8)
    preprocess(contract.preprocessing, pixels, out=batch_nhwc)
    sizes = [Size(width, height) for height, width, _ in (each.shape for each in pixels)]
    options = [contract.options(**asked)] * len(pixels)
    return list(postprocess(contract, run(package, batch_nhwc), options, sizes))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"max_detections": 12},
        {"confidence_threshold": 0.1},
        {"classes": (3, "class 7", 11), "max_detections": 2},
    ],
)
def test_gateway_and_wrapper_say_the_same(
    package: Path, contract: ModelContract, wrapper: ModelWrapper, asked: dict[str, Any]
) -> None:
    ours, theirs = by_gateway(package, contract, **asked), wrapper.predict_batch(PICTURES, **asked)

    for found, answer in zip(ours, theirs, strict=True):
        assert found.class_id.tolist() == [each["class_id"] for each in answer["predictions"]]
        confidences = [each["confidence"] for each in answer["predictions"]]
        np.testing.assert_allclose(found.confidence, confidences, rtol=0, atol=1e-6)


def test_and_what_the_oracle_says(package: Path, contract: ModelContract) -> None:
    found = by_gateway(package, contract)

    for path, classes in zip(PICTURES, found, strict=True):
        picture_rgb = decode_rgb(path.read_bytes(), max_pixels=50_000_000)
        (scores,) = run(package, reference.center_crop(picture_rgb, SIDE)[None])
        ranked = reference.read_classification(scores, 0.0, 3)
        assert classes.class_id.tolist() == [each.class_id for each in ranked]


def test_the_pictures_are_told_apart(package: Path, contract: ModelContract) -> None:
    """Or the comparisons above would compare nothing."""
    answers = [tuple(found.class_id.tolist()) for found in by_gateway(package, contract)]

    assert len(set(answers)) > len(PICTURES) / 3
    assert all(len(answer) == 3 for answer in answers)
