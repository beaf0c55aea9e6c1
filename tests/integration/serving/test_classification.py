"""A classifier from encoded pictures to classes, through a real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from export_pipeline import reference
from serving.adapters.triton import TritonBackend
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.classification import Classification
from serving.domain.inference import PictureAnswer
from serving.metrics import Metrics
from serving.threads import PriorityThreads
from serving.triton.launcher import TritonServer
from tests.conftest import ONE_CPU_INSTANCE
from tests.support import onnx_models
from tests.support.contracts import classifier_contract
from tests.support.world import encode

MEAN_COLOR = """
    <ir_version: 8, opset_import: ["" : 17]>
    mean_color (uint8[N, 32, 32, 3] images) => (float[N, 3] scores) <float tenth = {0.1}> {
        pixels = Cast <to = 1> (images)
        mean = ReduceMean <axes = [1, 2], keepdims = 0> (pixels)
        logits = Mul(mean, tenth)
        scores = Softmax <axis = 1> (logits)
    }
"""
CONFIG = """
    max_batch_size: 8
    input [{ name: "images" data_type: TYPE_UINT8 dims: [32, 32, 3] }]
    output [{ name: "scores" data_type: TYPE_FP32 dims: [3] }]
    dynamic_batching { default_queue_policy {
        timeout_action: REJECT allow_timeout_override: true
        default_timeout_microseconds: 30000000 max_queue_size: 64 } }
"""
COLORS = classifier_contract("mean_color", side=32, classes=["red", "green", "blue"])
MAX_PIXELS = 1_000_000
CLOCK = SystemClock()


@pytest.fixture
async def detector(tiny_repository: Path, tiny_triton: TritonServer) -> AsyncIterator[Detector]:
    onnx_models.write_entry(tiny_repository, COLORS.name, MEAN_COLOR, ONE_CPU_INSTANCE + CONFIG)
    async with httpx.AsyncClient(base_url=tiny_triton.http_url, timeout=30, trust_env=False) as triton:
        (await triton.post(f"/v2/repository/models/{COLORS.name}/load", json={})).raise_for_status()
    backend = TritonBackend(tiny_triton.grpc_url, CLOCK)
    with ThreadPoolExecutor(2) as executor:
        made = Detector(
            COLORS,
            backend=backend,
            limits=DetectorLimits(4, 1, 32, MAX_PIXELS),
            decoded_pixels=Budget(MAX_PIXELS),
            threads=PriorityThreads(executor, 2),
            clock=CLOCK,
            metrics=Metrics(CollectorRegistry()),
        )
        yield made
        await made.close()
    await backend.close()


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(height, width, 3) RGB, with a colour of its own for each seed."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(0, 1, (height, width, 3)) * rng.uniform(80, 255, 3)).astype(np.uint8)


async def classified(detector: Detector, picture_rgb: NDArray[np.uint8], **asked: int) -> PictureAnswer:
    data = encode(picture_rgb[..., ::-1], ".png")
    return await detector.detect(
        data, COLORS.options(max_detections=asked.get("top")), deadline=CLOCK.monotonic() + 30, priority=1
    )


def expected(picture_rgb: NDArray[np.uint8]) -> list[reference.ScoredClass]:
    """The oracle's crop, and the graph by hand."""
    logits = reference.center_crop(picture_rgb, 32).astype(np.float64).mean(axis=(0, 1)) / 10
    powers = np.exp(logits - logits.max())
    return reference.read_classification((powers / powers.sum()).astype(np.float32), 0.0, 5)


async def test_pictures_of_all_shapes_in_shared_batches_get_their_own_classes(detector: Detector) -> None:
    shapes = [(32, 32), (20, 90), (90, 20), (200, 300), (300, 3), (3, 300), (1, 1), (64, 33)]
    pictures = [noise(height, width, seed) for seed, (height, width) in enumerate(shapes)]

    answers = await asyncio.gather(*(classified(detector, picture) for picture in pictures))

    for picture, answer in zip(pictures, answers, strict=True):
        ranked = expected(picture)
        assert isinstance(answer.predictions, Classification)
        assert answer.predictions.class_id.tolist() == [each.class_id for each in ranked]
        np.testing.assert_allclose(
            answer.predictions.confidence, [each.confidence for each in ranked], rtol=1e-3, atol=1e-6
        )
        assert (answer.size.height, answer.size.width) == picture.shape[:2]
        assert answer.model_version == "1"


async def test_each_request_has_its_own_options_in_a_shared_batch(detector: Detector) -> None:
    picture = noise(40, 50, seed=0)

    answers = await asyncio.gather(*(classified(detector, picture, top=top) for top in (1, 2, 3)))

    assert [len(answer.predictions) for answer in answers] == [1, 2, 3]
