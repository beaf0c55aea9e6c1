from __future__ import annotations

from typing import Any

import pytest

from export_pipeline.certificate.answers import predictions_of
from export_pipeline.errors import ExportError

CAT = {"class": "cat", "class_id": 0, "confidence": 0.5}
IMAGE = {"width": 320, "height": 240}


def test_an_answer_without_predictions_still_has_a_size() -> None:
    found = predictions_of({"predictions": [], "image": IMAGE}, ["cat"], boxes=True)

    assert (found.width, found.height) == (320, 240)
    assert found.xyxy is not None
    assert found.xyxy.shape == (0, 4)
    assert found.confidence.shape == found.class_id.shape == (0,)


def test_an_answer_becomes_predictions() -> None:
    entry = {**CAT, "bbox": [1.0, 2.0, 3.0, 4.0]}
    body = {"predictions": [entry], "image": IMAGE, "latency_ms": 1.5}

    found = predictions_of(body, ["cat"], boxes=True)

    assert found.xyxy is not None
    assert found.xyxy.tolist() == [[1, 2, 3, 4]]
    assert (found.confidence.tolist(), found.class_id.tolist()) == ([0.5], [0])
    assert predictions_of({"predictions": [CAT], "image": IMAGE}, ["cat"], boxes=False).xyxy is None


@pytest.mark.parametrize(
    ("body", "boxes", "said"),
    [
        ({}, True, "An answer is not one"),
        ({"predictions": []}, True, "An answer is not one"),
        ({"predictions": [CAT], "image": IMAGE}, True, "An answer has boxes where there are none"),
        ({"predictions": [{**CAT, "bbox": [1, 2, 3, 4]}], "image": IMAGE}, False, "An answer has boxes"),
        ({"predictions": [{**CAT, "class": "dog"}], "image": IMAGE}, False, "calls class 0 'dog'"),
        ({"predictions": [{**CAT, "class_id": 1}], "image": IMAGE}, False, "calls class 1 'cat'"),
    ],
)
def test_an_answer_that_is_none_is_refused(body: dict[str, Any], boxes: bool, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        predictions_of(body, ["cat"], boxes=boxes)
