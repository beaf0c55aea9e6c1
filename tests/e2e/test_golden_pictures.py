"""The whole way, HTTP in and JSON out, says what Ultralytics' own `predict` said of the golden pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import ROOT, Stack

GOLDEN = ROOT / "tests" / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "predictions.json").read_text())["pictures"]
MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp"}


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return overlap / (sum(areas) - overlap)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_boxes_equal_ultralytics(stack: Stack, name: str) -> None:
    picture = GOLDEN / "pictures" / name
    response = httpx.post(
        f"{stack.url}/v1/infer/shapes",
        content=picture.read_bytes(),
        headers={**stack.bearer, "Content-Type": MEDIA_TYPES[Path(name).suffix]},
        timeout=30,
    )

    answer, expected = response.json(), EXPECTED[name]
    assert response.status_code == 200, answer
    assert answer["image"] == {"width": expected["width"], "height": expected["height"]}
    found = answer["predictions"]
    assert [box["class"] for box in found] == [box["class"] for box in expected["predictions"]]
    for ours, theirs in zip(found, expected["predictions"], strict=True):
        assert iou(ours["bbox"], theirs["bbox"]) >= 0.99
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=0.002)
