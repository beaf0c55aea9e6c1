"""The whole way, HTTP in and JSON out, says what Ultralytics' own `predict` said of the golden pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.same_detections import assert_same_detections, from_json
from tests.support.stack import ROOT, Stack

GOLDEN = ROOT / "tests" / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "predictions.json").read_text())["pictures"]
MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp"}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_boxes_equal_ultralytics(stack: Stack, name: str) -> None:
    response = httpx.post(
        f"{stack.url}/v1/infer/shapes",
        content=(GOLDEN / "pictures" / name).read_bytes(),
        headers={**stack.bearer, "Content-Type": MEDIA_TYPES[Path(name).suffix]},
        timeout=30,
    )

    answer, expected = response.json(), EXPECTED[name]
    assert response.status_code == 200, answer
    assert answer["image"] == {"width": expected["width"], "height": expected["height"]}
    assert_same_detections(
        [from_json(each) for each in answer["predictions"]],
        [from_json(each) for each in expected["predictions"]],
    )
    assert names_of(answer["predictions"]) == names_of(expected["predictions"])


def names_of(predictions: list[dict[str, Any]]) -> set[tuple[int, str]]:
    return {(each["class_id"], each["class"]) for each in predictions}
